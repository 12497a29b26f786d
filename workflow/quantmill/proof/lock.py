"""Locks what a model's files are made from, and the files, by content; and states so of each file."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from quantmill import command
from quantmill.engine import library, native
from quantmill.errors import QuantmillError
from quantmill.files import building, json_text, write_json
from quantmill.formats.allocation import PLAN, Plan
from quantmill.formats.cross import CROSS
from quantmill.formats.moments import MOMENTS
from quantmill.formats.proof import (
    LOCK,
    LOCK_FORMAT,
    Lock,
    LockedEngine,
    LockedImatrix,
    LockedKernel,
    LockedRecipe,
    LockedSource,
    MomentsOfRecipe,
)
from quantmill.formats.publication import FACTS, PARTS, Part, Parts, files_of
from quantmill.formats.settings import ImatrixFile, Quantize
from quantmill.formats.settings import Lock as Settings
from quantmill.formats.source import MODEL
from quantmill.model.digests import Memo
from quantmill.progress import Log
from quantmill.proof import attest
from quantmill.recipe.presets import PRESETS
from quantmill.spec import digest, file_sha256
from quantmill.stages import STAGES

DECIDING: Final = (
    "model.fetch",
    "checkpoint.convert",
    "model.manifest",
    "corpus.build",
    "measure.imatrix",
    "imatrix.imported",
    "measure.moments",
    "measure.cross",
    "sensitivity.measure",
    "sensitivity.imported",
    "budget.allocate",
    "recipe.plan",
    "quantize.write",
)
"""The stages whose versions are in a lock: those that a file depends on, and none that measures it."""

_CURE: Final = "delete it to have it made again"


def lock_of(results: Path, settings: Settings, sources: list[Path]) -> Lock:
    """The lock of a model whose results lie in a folder; `sources` are the source's files, in order.

    QuantmillError where what is there is not what the reports say.
    """
    parts: Parts = PARTS.read(results / "parts.json") if settings["parts"] else {}
    return {
        "format": LOCK_FORMAT,
        "model": settings["model"],
        "source": source_of(results, settings, sources),
        "corpora": {
            name: {**corpus, "sha256": file_sha256(results / "corpus" / f"{name}.parquet")}
            for name, corpus in settings["corpora"].items()
        },
        "imatrix": _imatrix(results / "imatrix.gguf", settings["imatrix"], settings["imported"]),
        "recipes": {
            name: _recipe(results, settings["model"], name, its, parts.get(name))
            for name, its in settings["recipes"].items()
        },
        "engines": {name: engine_of(name, sha256) for name, sha256 in settings["engines"].items()},
        "kernel": kernel(),
        "versions": {
            "quantmill": settings["quantmill"],
            "stages": {name: STAGES[name].version for name in DECIDING},
        },
    }


def source_of(results: Path, settings: Settings, sources: list[Path]) -> LockedSource:
    """The source; the digest of a file that is alone was taken when its tensors were listed."""
    facts = MODEL.read(results / "model.json")
    if len(sources) == 1:
        files: list[Part] = [{"file": sources[0].name, "bytes": facts["bytes"], "sha256": facts["sha256"]}]
    else:
        memo = Memo.of_stage()
        files = [
            {"file": path.name, "bytes": path.stat().st_size, "sha256": memo.sha256(path)} for path in sources
        ]
        if digest("\n".join(part["sha256"] for part in files)) != facts["sha256"]:
            raise QuantmillError("is not of this source any more", results / "model.json", _CURE)
    return {
        "sha256": facts["sha256"],
        "bytes": facts["bytes"],
        "manifest": file_sha256(results / "manifest.tsv"),
        "files": files,
        "hub": settings["hub"],
        "checkpoint": settings["checkpoint"],
    }


def _imatrix(path: Path, named: ImatrixFile | None, imported: str | None) -> LockedImatrix | None:
    if named is None:
        return None
    return {
        "sha256": file_sha256(path),
        "bytes": path.stat().st_size,
        "named": named,
        "imported": imported,
    }


def _recipe(
    results: Path, model: str, name: str, settings: Quantize, parts: list[Part] | None
) -> LockedRecipe:
    facts = FACTS.read(results / "gguf" / f"{model}-{name}.json")
    plan = results / "plans" / f"{name}.json"
    return {
        "recipe": file_sha256(results / "recipes" / f"{name}.yaml"),
        "plan": file_sha256(plan.with_suffix(".tsv")),
        "report": file_sha256(plan),
        "settings": settings,
        "imatrix": PLAN.read(plan)["imatrix"],
        "preset": _preset(PLAN.read(plan), settings),
        "sha256": facts["sha256"],
        "files": files_of(facts),
        "published": parts or files_of(facts),
        **moments_of(results, name, settings),
    }


def moments_of(results: Path, recipe: str, settings: Quantize) -> MomentsOfRecipe:
    """Digests of the keys of what a recipe's weights are rounded with; empty for rounding to nearest."""
    rounding = settings.get("rounding")
    made: MomentsOfRecipe = {}
    if rounding is not None:
        made["moments"] = digest([one["key"] for one in MOMENTS.read(results / "moments.json")["inputs"]])
    if rounding == "gptaq":
        cross = CROSS.read(results / "cross" / f"{recipe}.json")
        made["cross"] = digest([one["key"] for one in cross["inputs"]])
    return made


def _preset(plan: Plan, settings: Quantize) -> str | None:
    """The preset by which llama-quantize makes the same file; None where it has none."""
    own = plan["rules"] or settings.keys() & {"engine", "split", "rounding", "keep"}
    return plan["base"] if plan["base"] in PRESETS and not own else None


def engine_of(name: str, expected: str) -> LockedEngine:
    """An engine of this environment. QuantmillError where it is not the one that the files are of."""
    engine = library.ENGINES[name]
    if (here := library.digest(file_sha256, name)) != expected:
        what = f"has other libraries here ({here[:12]}) than where the run was started ({expected[:12]})"
        raise QuantmillError(what, f"engine {name}", "use the same environment on all machines")
    build = library.Build.read(library.folder(name) / library.BUILD)
    return {
        "package": engine.package,
        "version": version(engine.package),
        "sha256": here,
        "libraries": libraries(name),
        "compiler": build.compiler,
        "cmake": build.cmake,
        "flags": build.flags,
        "instructions": sorted(build.needs),
    }


def libraries(engine: str) -> dict[str, str]:
    """The sha256 of each of an engine's libraries that decide a result."""
    return {name: file_sha256(library.path(name, engine)) for name in library.ENGINES[engine].libraries}


def kernel() -> LockedKernel:
    """quantmill's own native code, as it is built into this environment."""
    return {
        "sources": native.sources_sha256(),
        "sha256": file_sha256(native.built()),
        "flags": list(native.FLAGS),
    }


def write_statements(folder: Path, lock: Lock, lock_sha256: str) -> None:
    """A statement beside the name of each file, as a repository has it; what stood there before goes."""
    statements: dict[str, dict[str, Any]] = attest.statements(lock, lock_sha256)
    with building(folder) as made:
        for name, statement in statements.items():
            write_json(made / name, statement)


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `proof.lock`."""
    lock = lock_of(args.results, args.spec["config"], args.source)
    write_statements(args.statements, lock, digest(json_text(lock)))
    LOCK.write(args.out, lock)
    log.say(f"{len(lock['recipes'])} recipes locked")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--results", type=Path, required=True, help="folder of the model's results")
    arguments.add_argument(
        "--source", type=Path, nargs="+", required=True, help="the source's files; one alone is not read"
    )
    arguments.add_argument("--out", type=Path, required=True, help="lock.json")
    arguments.add_argument("--statements", type=Path, required=True, help="folder of the statements")
    command.run(arguments, main)
