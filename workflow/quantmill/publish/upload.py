"""Shows what would be published where; uploads it where that is confirmed, and only what differs."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import NamedTuple

from quantmill import command
from quantmill.errors import QuantmillError
from quantmill.formats.places import PublishedFiles, PublishedModel, Upload
from quantmill.formats.publication import PARTS
from quantmill.progress import BYTES, Log
from quantmill.publish import modelscope, ollama
from quantmill.publish.compare import UPLOADED, Row, compare, table
from quantmill.publish.files import SUMS, Item, below, items_of, read_sums, sums_of, unsound, withheld_in
from quantmill.publish.hub import Holdings, Repository, UnreachableError
from quantmill.publish.split import split_items


class Publication(NamedTuple):
    """One model's files beside what its repository holds."""

    model: str
    repository: Repository | modelscope.Repository
    settings: PublishedModel
    items: list[Item]
    held: Holdings | None
    rows: list[Row]
    unsound: list[str]

    @property
    def due(self) -> list[Item]:
        """The items that differ."""
        states = {row.path: row.state for row in self.rows}
        return [item for item in self.items if states[item.path] in UPLOADED]


def prepared(
    model: str,
    repository: Repository | modelscope.Repository,
    settings: PublishedModel,
    results: Path,
    confirmed: bool,
) -> Publication:
    """What there is to publish of a model, compared with its repository.

    Where the hub cannot be reached, and nothing is to be uploaded, every state is `unknown`.
    """
    items, wrong = _files(model, settings, results)
    for name, beside in settings.get("together", {}).items():
        more, unsound_too = _files(name, beside, results.parent / name, card=False)
        items, wrong = items + below(name, more), wrong + unsound_too
    try:
        held = repository.holdings()
        commit = "" if held is None else held.commit
        published = (
            read_sums(repository.read(SUMS, commit)) if held is not None and SUMS in held.files else {}
        )
        others = {path: digest for path, digest in published.items() if held and path in held.files}
        others.pop(SUMS, None)
        items.append(sums_of(items, others))
        rows = compare(items, held, published, lambda path: repository.read(path, commit))
    except UnreachableError:
        if confirmed:
            raise
        held, rows = None, [Row("unknown", item.path, item.bytes, item.sha256) for item in items]
    return Publication(model, repository, settings, items, held, rows, wrong)


def _files(
    model: str, settings: PublishedFiles, results: Path, *, card: bool = True
) -> tuple[list[Item], list[str]]:
    """The files of a model, and what is wrong with any."""
    withheld = withheld_in(results)
    recipes = [recipe for recipe in settings["recipes"] if recipe not in withheld]
    include, measured, signed = settings["include"], settings["measured"], settings["signed"]
    items = items_of(results, model, recipes, include, measured, signed=signed, card=card)
    if settings["repo"] is not None:  # ModelScope alone takes files as they are
        items = split_items(items, PARTS.read(results / "parts.json"), settings["split"])
    return items, unsound(results, recipes)


def shown(publication: Publication) -> list[str]:
    """The lines that a person reads before anything is uploaded."""
    rows, settings = publication.rows, publication.settings
    due, all_ours = sum(item.bytes for item in publication.due), sum(item.bytes for item in publication.items)
    there = "" if publication.held else ", to be made"
    if not publication.held and publication.repository.missing:
        there = f", which is not there: {publication.repository.missing}"
    private = settings["private"] and not publication.repository.missing
    kind = f"{publication.repository.revision}{', private' if private else ''}{there}"
    where = f"{publication.repository.name} ({kind})"
    head = f"{publication.model} -> {where}: {len(publication.due)} of {len(publication.items)} files"
    return [f"{head} to upload, {due:,} of {all_ours:,} bytes", *table(rows), *publication.unsound]


def refuse_unsound(publication: Publication) -> None:
    """QuantmillError where a file failed its check, where there is no token, or where somebody else's work
    would be lost.
    """
    if publication.unsound:
        cure = "make it again, or leave it out"
        raise QuantmillError("; ".join(publication.unsound), publication.repository.name, cure)
    repository = publication.repository
    if not repository.has_token:
        raise QuantmillError("no token to upload with", repository.name, repository.login)
    if publication.held is None and repository.missing:
        raise QuantmillError("no such repository", repository.name, repository.missing)
    edited = [row.path for row in publication.rows if row.state == "edited"]
    if edited and not publication.settings["overwrite"]:
        raise QuantmillError(
            f"{', '.join(edited)}: not as published from here, and would be lost",
            publication.repository.name,
            "keep a copy and say publish: {overwrite: true}, or choose another repository",
        )


def upload(publication: Publication, room: Path, log: Log) -> str:
    """Upload what differs; the commit's address. QuantmillError where the hub then holds anything else."""
    repository, due = publication.repository, publication.due
    if publication.held is None and isinstance(repository, Repository):
        repository.make(publication.settings["private"])
    parent = publication.held and publication.held.commit
    total = sum(item.bytes for item in due)
    with log.progress(f"upload {publication.model}", total, BYTES) as progress:
        address = repository.upload(due, parent, f"Publish {publication.model}", progress, room)
    rows = compare(publication.items, repository.holdings(), {}, lambda _: b"")
    wrong = [row.path for row in rows if row.state in UPLOADED]
    if wrong:
        raise QuantmillError(
            f"{', '.join(wrong)}: not there as sent",
            repository.name,
            "run it again and look at the repository",
        )
    return address


def main(args: argparse.Namespace, log: Log) -> None:
    """The command `publish.upload`: everything is looked at before anything is uploaded."""
    config: Upload = args.spec["config"]
    publications = []
    for model, settings in config["models"].items():
        repositories: list[Repository | modelscope.Repository] = []
        if (repo := settings["repo"]) is not None:
            repositories.append(Repository(repo, settings["revision"]))
        if (repo := settings.get("modelscope")) is not None:
            repositories.append(modelscope.Repository(repo))
        publications += [
            prepared(model, repository, settings, args.results / model, config["confirm"])
            for repository in repositories
        ]
    in_registries = [
        ollama.prepared(args.results, model, place, settings["recipes"], config["confirm"])
        for model, settings in config["models"].items()
        if (place := settings.get("ollama")) is not None
    ]

    def say(line: str) -> None:
        print(line, flush=True)
        if log.path is not None:
            log.say(line)

    for publication in publications:
        for line in (*shown(publication), ""):
            say(line)
    for pushed in in_registries:
        for line in (*pushed.shown(), ""):
            say(line)
    if not config["confirm"]:
        due = any(publication.due for publication in publications) or any(one.due for one in in_registries)
        say("nothing was uploaded; to upload: add --config confirm=yes" if due else "nothing differs")
        return
    for publication in publications:
        refuse_unsound(publication)
    for pushed in in_registries:
        pushed.refuse_unsound()
    for publication in publications:
        name = publication.repository.name
        room = args.results / publication.model / ".publish"
        try:
            address = upload(publication, room, log) if publication.due else "nothing differs"
        finally:
            shutil.rmtree(room, ignore_errors=True)
        say(f"{name}: {address}")
    for pushed in in_registries:
        say(f"{pushed.place}: {pushed.push(log)}")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--results", type=Path, required=True, help="folder with the models' results")
    command.run(arguments, main)
