"""Text to token chunks: chooses rows, tokenizes them, splits them into chunks, mixes at the requested shares.

A chunk is of one domain. The chosen rows of a source are tokenized one by one
in their shuffled order, each ended by a line end, laid end to end and cut into
chunks of `context` tokens: what `llama-imatrix -f` would see of the same rows
in a text file. No BOS is added; those who evaluate a chunk put it in place of
the first token, where the vocabulary wants one.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final

import numpy as np

from quantmill import command
from quantmill.corpus.chat import ChatTemplate
from quantmill.corpus.decode import Document, Render, decode
from quantmill.corpus.messages import Messages, Tools
from quantmill.corpus.mix import Broken, Row, Selection, apportion, select
from quantmill.corpus.read import Source, open_source, read_rows
from quantmill.engine.vocabulary import LONGEST_STRETCH, Vocabulary, tokenizable
from quantmill.errors import QuantmillError
from quantmill.files import writing
from quantmill.formats import settings
from quantmill.formats.chunks import Chunk, Tokens, row_digests, write_chunks
from quantmill.formats.corpus import CORPUS, Corpus, CorpusSource, interleave
from quantmill.formats.ggufio import read_header
from quantmill.progress import Log
from quantmill.spec import file_sha256
from quantmill.text import plural

Tokenize = Callable[[str, bool], Tokens]

_REASONS_LISTED: Final = 3
CHARACTERS_A_TOKEN: Final = 8
"""Characters of text that a token is taken to need. If that is too few, the text is read again for more."""


@dataclass(frozen=True)
class Part:
    """What one source gives: its chunks, the rows that they hold, and the selection these are from."""

    chunks: list[Chunk]
    rows: list[Row]
    selection: Selection


def take(
    values: Callable[[], Iterable[object]],
    render: Render,
    tokenize: Tokenize,
    *,
    domain: str,
    file: str,
    chunks: int,
    context: int,
    seed: int,
    rows: int | None = None,
    messages: bool = False,
    taken: Iterable[int] = (),
) -> Part:
    """`chunks` chunks of `context` tokens from the rows that `values()` reads.

    The rows used are the first in the seed's order that suffice, however many
    passes that takes. Raises QuantmillError where all rows together are too few,
    which names the `file`.
    """
    needed = chunks * context
    characters = needed * CHARACTERS_A_TOKEN
    taken = set(taken)
    while True:
        decoded = partial(_document, render=render, messages=messages)
        selection = select(values(), decoded, seed=seed, characters=characters, rows=rows, taken=taken)
        pieces = list(_tokenized(selection.rows, tokenize, needed, file))
        had = sum(map(len, pieces))
        if had >= needed:
            used = selection.rows[: len(pieces)]
            return Part(cut(pieces, [row.digest for row in used], domain, chunks, context), used, selection)
        if selection.all:
            need = f"{chunks} chunks of {context} need {needed}"
            raise _too_little(f"{had} tokens in {len(pieces)} rows, and {need}", selection, domain, file)
        characters *= 4


def cut(
    pieces: Sequence[Tokens], digests: Sequence[int], domain: str, chunks: int, context: int
) -> list[Chunk]:
    """The first `chunks` chunks of `context` tokens of the pieces, laid end to end.

    `digests` names the row of each piece; a chunk keeps those it has tokens of.
    """
    ends = np.cumsum([len(piece) for piece in pieces])
    tokens = np.concatenate(pieces)[: chunks * context].reshape(chunks, context)
    cut_chunks = []
    for number, row in enumerate(tokens):
        first = int(np.searchsorted(ends, number * context, side="right"))
        last = int(np.searchsorted(ends, (number + 1) * context, side="left"))
        cut_chunks.append(Chunk(domain, row, list(digests[first : last + 1])))
    return cut_chunks


def build(
    config: settings.Corpus, sources: Sequence[Source], render: Render, tokenize: Tokenize, log: Log
) -> tuple[list[Chunk], list[Part]]:
    """The corpus's chunks in their order, and the part of each source; `config` as in the spec."""
    counts = apportion([each["weight"] for each in config["sources"]], config["chunks"])
    parts: list[Part] = []
    taken: set[int] = set()
    for source, own, count in zip(sources, config["sources"], counts, strict=True):
        if count == 0:
            parts.append(Part([], [], Selection()))
            continue
        part = take(
            partial(_watched, source, log),
            render,
            tokenize,
            messages=source.messages,
            taken=taken,
            domain=own["name"],
            file=source.path.name,
            chunks=count,
            context=config["context"],
            seed=config["seed"],
            rows=own.get("rows"),
        )
        taken |= {row.digest for row in part.rows}
        parts.append(part)
    queues = [iter(part.chunks) for part in parts]
    return [next(queues[source]) for source in interleave(counts)], parts


def check_disjoint(corpus: str, rows: Iterable[Row], other: str, digests: set[int]) -> None:
    """Raise QuantmillError where a row of `corpus` is among the `digests` of the corpus `other`."""
    shared = [row for row in rows if row.digest in digests]
    if shared:
        words = " ".join(shared[0].document.text.split()[:8])[:60]
        raise QuantmillError(
            f'shares {len(shared)} rows with the corpus {other}, the first begins "{words}"',
            f"corpus {corpus}",
            "give one of the two other files, so that it holds text the other has not seen",
        )


def report(
    config: settings.Corpus, sources: Sequence[Source], digests: Sequence[str], parts: Sequence[Part]
) -> Corpus:
    """The corpus's JSON, as docs/files.md has it; `digests` are the sha256 of the files."""
    weights = math.fsum(each["weight"] for each in config["sources"])
    entries: list[CorpusSource] = []
    warnings = []
    for source, own, sha256, part in zip(sources, config["sources"], digests, parts, strict=True):
        name, selection, count = own["name"], part.selection, len(part.chunks)
        entries.append(
            {
                "name": name,
                "file": source.path.name,
                "sha256": sha256,
                "column": source.column,
                "rows_read": selection.read,
                "rows_used": len(part.rows),
                "rows_broken": selection.rows_broken,
                "rows_duplicate": selection.taken + sum(row.copies for row in part.rows),
                "rows_empty": selection.empty,
                "rows_joined": sum(row.document.joined for row in part.rows),
                "rows_cut": sum(row.document.cut for row in part.rows),
                "broken": [
                    {"reason": reason, "rows": broken.rows, "first": broken.first}
                    for reason, broken in _by_rows(selection)
                ],
                "characters": sum(len(row.document.text) for row in part.rows),
                "tokens": count * config["context"],
                "chunks": count,
                "share_wanted": own["weight"] / weights,
                "share_got": count / config["chunks"],
            }
        )
        if selection.broken:
            warnings.append(f"{name}: {_left_out(selection, source.path.name)}")
        if cut := sum(row.document.cut for row in part.rows):
            warnings.append(
                f"{name}: {plural(cut, 'row')} of {source.path.name} cut short, for over "
                f"{LONGEST_STRETCH:,} characters without a break cannot be tokenized"
            )
        if not count:
            warnings.append(f"{name}: its weight is too low for one of {config['chunks']} chunks")
    total = config["chunks"] * config["context"]
    return {
        "corpus": config["corpus"],
        "seed": config["seed"],
        "context": config["context"],
        "chunks": config["chunks"],
        "tokens": total,
        "sources": entries,
        "warnings": warnings,
    }


def _document(value: object, render: Render, messages: bool) -> Document:
    """The document in one row, cut before what no tokenizer's stack suffices for."""
    document = decode(value, render, messages=messages)
    room = tokenizable(document.text)
    return document if room == len(document.text) else document._replace(text=document.text[:room], cut=True)


def _by_rows(selection: Selection) -> list[tuple[str, Broken]]:
    """The reasons for which rows are broken, the most common first."""
    return sorted(selection.broken.items(), key=lambda item: (-item[1].rows, item[1].first))


def _left_out(selection: Selection, file: str) -> str:
    """`3 of 9 rows of x.txt are left out: 2 not UTF-8, such as row 4; ...`."""
    reasons = [
        f"{broken.rows} {reason}, such as row {broken.first}" for reason, broken in _by_rows(selection)
    ]
    if len(reasons) > _REASONS_LISTED:
        reasons[_REASONS_LISTED:] = ["and more"]
    share = "all" if selection.rows_broken == selection.read else f"{selection.rows_broken} of"
    return f"{share} {selection.read} rows of {file} are left out: {'; '.join(reasons)}"


def _too_little(what: str, selection: Selection, domain: str, file: str) -> QuantmillError:
    cure = "give it more text or a lower weight, raise its `rows`, or ask for fewer chunks"
    if selection.broken:
        what = f"{what}; {_left_out(selection, file)}"
    if 2 * selection.rows_broken > selection.read:
        cure = "choose a file or a `column` whose rows can be read, or ask for fewer chunks"
    return QuantmillError(what, f"source {domain}", cure)


def _tokenized(rows: Iterable[Row], tokenize: Tokenize, needed: int, file: str) -> Iterator[Tokens]:
    """The tokens of row after row of `file`, until there are as many as needed."""
    had = 0
    for row in rows:
        command.doing(f"row {row.number} of {file}")
        text = row.document.text
        piece = tokenize(text if text.endswith("\n") else text + "\n", row.document.chat)
        command.doing("")  # what ends the stage later is not this row's
        yield piece
        had += len(piece)
        if had >= needed:
            return


def _watched(source: Source, log: Log) -> Iterator[object]:
    if source.rows is None:
        yield from read_rows(source)
        return
    with log.progress(f"read {source.path.name}", source.rows, "rows") as progress:
        for value in read_rows(source):
            yield value
            progress.add(1)


def _renderer(model: Path, vocabulary: Vocabulary) -> Render:
    """The model's chat template, read when the first chat row needs it."""

    @cache
    def template() -> ChatTemplate:
        text = read_header(model, data=False).text("tokenizer.chat_template")
        if text is None:
            raise QuantmillError(
                "has no chat template, and a source has chat rows", model, "choose a column of plain text"
            )
        try:
            return ChatTemplate(text, bos=vocabulary.special("bos"), eos=vocabulary.special("eos"))
        except ValueError as error:
            raise QuantmillError(
                f"its chat template is no valid Jinja ({error})", model, "choose a column of plain text"
            ) from None

    def render(messages: Messages, tools: Tools | None) -> Document:
        text = template().render(messages, tools)
        return Document(text, chat=True, joined=template().joins_system(messages))

    return render


def main(args: argparse.Namespace, log: Log) -> None:
    """Build one corpus for one model."""
    config: settings.Corpus = args.spec["config"]
    if len(args.sources) != len(config["sources"]):
        raise QuantmillError(f"{len(args.sources)} files for {len(config['sources'])} sources", "--sources")
    sources = [
        open_source(path, own.get("column"))
        for path, own in zip(args.sources, config["sources"], strict=True)
    ]
    others = {path.stem: row_digests(path) for path in args.disjoint_from}
    digests = args.spec.get("from", {}).get("files") or [file_sha256(path) for path in args.sources]
    with Vocabulary(args.model) as vocabulary:
        try:
            chunks, parts = build(
                config, sources, _renderer(args.model, vocabulary), vocabulary.tokenize, log
            )
        except QuantmillError as error:
            raise QuantmillError(str(error), f"corpus {config['corpus']}") from error
    for other, known in others.items():
        check_disjoint(config["corpus"], (row for part in parts for row in part.rows), other, known)
    with writing(args.corpus) as file:
        write_chunks(file, chunks)
    written = report(config, sources, digests, parts)
    CORPUS.write(args.report, written)
    log.warn(written["warnings"])
    log.say(f"{len(chunks)} chunks of {config['context']} tokens from {sum(len(p.rows) for p in parts)} rows")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="source GGUF, for its vocabulary")
    arguments.add_argument("--corpus", type=Path, required=True, help="parquet file to write")
    arguments.add_argument("--report", type=Path, required=True, help="JSON file to write")
    arguments.add_argument(
        "--sources", type=Path, nargs="+", required=True, help="the files of the spec's sources, in its order"
    )
    arguments.add_argument(
        "--disjoint-from", type=Path, nargs="*", default=[], help="built corpora to share no row with"
    )
    command.run(arguments, main)
