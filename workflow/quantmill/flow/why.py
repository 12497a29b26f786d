"""`snakemake why [FILE...]`: what made a result stale, in plain words, and no job is run.

Snakemake tells that the params of a rule changed. They are one spec, which has all that decides an
output, so the spec that an output was made with and the one that it would have now differ in what
made it stale: a field of the config, a file, the engine, the version of a stage.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from quantmill import spec
from quantmill.errors import QuantmillError

_SHOWN: Final = 3  # files of a line
_LONGEST: Final = 60  # characters of a value
_NOTHING: Final = object()
_HEX: Final = 64  # digits of a sha256


class Due(NamedTuple):
    """A job that is due: its first output, what it was and would be made with, and Snakemake's own reasons.

    `old` is None where no earlier run of it is known.
    """

    rule: str
    output: str
    old: Mapping[str, Any] | None
    new: Mapping[str, Any]
    reasons: tuple[str, ...] = ()


def explain(due: Iterable[Due]) -> list[str]:
    """The lines that say why each of these jobs is due, in their order; those first made by rule."""
    jobs = list(due)
    made = {spec.digest(job.new): job.output for job in jobs}
    lines: list[str] = []
    missing: dict[str, list[str]] = {}
    for job in jobs:
        changes = [] if job.old is None else list(_changes(job.old, job.new, made))
        why = [*changes, *job.reasons]
        if job.old is None and not {*why} - {"is missing"}:
            missing.setdefault(job.rule, []).append(job.output)
        elif why:
            lines += [f"{job.output}:", *(f"  {line}" for line in dict.fromkeys(why))]
        else:
            lines += [f"{job.output}:", "  what it is made from is made anew"]
    for rule, outputs in missing.items():
        lines.append(f"not made yet, by {rule}: {_listed(outputs)}")
    return lines or ["nothing is stale"]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], made: Mapping[str, str]) -> Iterator[str]:
    """What differs between two specs; `made` has the outputs that are due by the digests of their specs."""
    upstream = []
    for path, before, now in differences(old, new):
        part, _, name = path.partition(".")
        if part == "version":
            yield f"the stage {new['stage']} of quantmill has version {now}, it was {before}"
        elif part == "engine":
            yield f"the engine's library is {_shown(now)}, it was {_shown(before)}"
        elif part == "from" and (known := [made[one] for one in _texts(now) if one in made]):
            upstream += known
        elif part == "from":
            yield f"{name}: its content is {_shown(now)}, it was {_shown(before)}"
        else:
            yield f"{name or path} is {_shown(now)}, it was {_shown(before)}"
    if upstream:
        yield f"is made from {_listed(upstream)}, made anew"


def _texts(value: Any) -> list[str]:
    """The digests in a value: itself, or those of a list that has become longer or shorter."""
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


def _listed(files: Sequence[str]) -> str:
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return f"{', '.join(files[:_SHOWN])}{more}"


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, old, new) of all values that differ in two JSON documents, by the names on the way to them."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys((*old, *new)):
            there = f"{path}.{name}" if path else str(name)
            yield from differences(old.get(name, _NOTHING), new.get(name, _NOTHING), there)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (before, now) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, now, f"{path}[{number}]")
    elif old is _NOTHING or new is _NOTHING or old != new:
        yield path, old, new


def _shown(value: Any) -> str:
    """A value as a person reads it: a digest by its first digits, a long one cut."""
    if value is _NOTHING:
        return "not set"
    if isinstance(value, str) and len(value) == _HEX and all(digit in "0123456789abcdef" for digit in value):
        return f"{value[:12]}…"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


class Why:
    """The target `why` of a run; `workflow` is Snakemake's, and `specs` where long specs lie."""

    TARGET: Final = "why"

    def __init__(self, workflow: Any, specs: Path, everything: Callable[[], list[str]]):
        self.workflow, self.specs, self.everything = workflow, specs, everything

    def files(self, wildcards: Any) -> list[str]:
        """What the target asks for: all results, unless files or other targets stand beside it."""
        return self.everything() if set(self.workflow.dag_settings.targets) == {self.TARGET} else []

    def end(self) -> None:
        """End the run before any of its jobs, where it is only to explain them."""
        if self._wanted:
            sys.exit(0)

    def at_exit(self) -> None:
        """Print why jobs are due, whether the run ended before them, had none, or was a dry run."""
        with suppress(AttributeError):  # the workflow or the command line was refused
            # Snakemake makes the scheduler once it knows all jobs.
            if self._wanted and self.workflow.scheduler is not None:
                print("\n".join(explain(self._due())))

    @property
    def _wanted(self) -> bool:
        return self.TARGET in self.workflow.dag_settings.targets

    def _due(self) -> Iterator[Due]:
        dag = self.workflow.dag
        due = set(dag.needrun_jobs(exclude_finished=False))
        for level in dag.toposorted(due):
            for job in sorted(level, key=lambda job: (job.rule.name, *map(str, job.output))):
                if hasattr(job.params, "spec") and job.output:
                    yield self._of(job, dag.reason(job))

    def _of(self, job: Any, reason: Any) -> Due:
        recorded = self.workflow.persistence.params(job.output[0]) or []
        return Due(
            job.rule.name,
            str(job.output[0]),
            next((self._read(ast.literal_eval(one)) for one in recorded), None),
            self._read(job.params.spec) or {},
            tuple(_reasons(reason)),
        )

    def _read(self, argument: Any) -> dict[str, Any] | None:
        """A spec of Snakemake's records; None where it is none, or its file is gone."""
        try:
            return spec.read_argument(str(argument), self.specs)
        except QuantmillError:
            return None


def _reasons(reason: Any) -> Iterator[str]:
    """Snakemake's own reasons beside the spec."""
    newer = sorted(map(str, reason.updated_input - reason.updated_input_run))
    if newer:
        yield f"is older than {_listed(newer)}"
    if reason.missing_output:
        yield "is missing"
    if reason.incomplete_output:
        yield "is not whole: the job that made it did not end"
    if reason.forced:
        yield "is forced by the command line"
    if reason.software_stack_changed:
        yield "its software environment changed"
