"""Identities: digests of the files and the engines that outputs are made from."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from quantmill import spec
from quantmill.config.refusal import check_input
from quantmill.engine import library
from quantmill.errors import QuantmillError
from quantmill.flow.once import once
from quantmill.flow.project import ROOT, Project
from quantmill.progress import Log
from quantmill.proof import sign

_REPORTED_ABOVE = 10**9  # bytes: hashing them takes longer than a second


class Digests:
    """Digests of inputs, each computed once; files are read again only where they changed.

    `local`: the jobs run on this machine, which must have what the engines need. `models` are
    those that the run is about: when the first source is asked for, theirs are read side by side,
    by `threads`.
    """

    def __init__(
        self,
        project: Project,
        *,
        local: bool = True,
        models: Callable[[], Sequence[str]] | None = None,
        threads: int = 1,
    ):
        self.project = project
        self.local = local
        self.models = models or (lambda: list(project.given.models))
        self.threads = threads

    @once
    def file(self, path: str) -> str:
        """Identity of an input's bytes; one that would fail the jobs that read it is refused."""
        if Path(path).exists():
            check_input(Path(path), self.project.file, self.project.results)
        return self.project.memo.sha256(Path(path))

    def files(self, paths: Iterable[str]) -> str:
        """Identity of a source: of one file, or of several together."""
        paths = list(paths)
        self._read_sources()
        self._read(map(Path, paths))
        digests = [self.file(path) for path in paths]
        return digests[0] if len(digests) == 1 else spec.digest("\n".join(digests))

    @once
    def checkpoint(self, model: str) -> str:
        """Identity of a checkpoint: of all its files."""
        self._read_sources()
        files = self.project.checkpoints[model].checkpoint_files
        self._read(files)
        return spec.digest({path.name: self.file(str(path)) for path in files})

    @once
    def _read_sources(self) -> None:
        """Read the sources of the models side by side."""
        self._read(path for model in self.models() for path in self._given(model))

    def _given(self, model: str) -> list[Path]:
        """The files that the user gives of a model's source; none of what is downloaded."""
        if model in self.project.checkpoints:
            return self.project.checkpoints[model].checkpoint_files
        made = self.project.given.models[model].source.made
        return [] if made else list(map(Path, self.project.source_files(model)))

    def _read(self, paths: Iterable[Path]) -> None:
        """Read those of the files that are not noted; what is missing is refused where it is asked for."""
        files = [path for path in paths if path.is_file()]
        for path in files:
            check_input(path, self.project.file, self.project.results)
        self.project.memo.read(files, self.threads, Log(), report_above=_REPORTED_ABOVE)

    @once
    def key(self, model: str) -> str | None:
        """The fingerprint of the key that the model's lock is signed with; QuantmillError for none."""
        key, own = self.project.config.publish_of(model).sign, self.project.config.models[model].publish
        where = f"{self.project.file}: {f'models.{model}.' if own else ''}publish.sign"
        return None if key is None else sign.fingerprint(Path(key), where)

    def check_keys(self) -> None:
        """QuantmillError where a key to sign with is none, before any work."""
        for model in self.project.with_recipes:
            self.key(model)

    @once
    def converter(self) -> str:
        """Identity of the converter, whether it is there yet or not: what is pinned of it."""
        locks = (ROOT / "envs" / name for name in ("engine.lock", "converter.lock"))
        return spec.digest("".join(lock.read_text("utf-8") for lock in locks))

    @once
    def mtmd(self) -> str:
        """Identity of the library that runs projectors."""
        return self.project.memo.sha256(library.path("mtmd", "mainline"))

    @once
    def engine(self, name: str = "mainline") -> str:
        """Identity of an engine's libraries."""
        if self.local:  # other machines may have what this one lacks, and see for themselves
            library.check(name)
        digest = library.digest(self.project.memo.sha256, name)
        variable = f"QUANTMILL_ENGINE_{name.upper()}"
        if not self.local:  # jobs on other machines have it with their environment
            os.environ.setdefault(variable, digest)
        if os.environ.get(variable, digest) != digest:
            raise QuantmillError(
                "is another build than that of the machine that the job was submitted from",
                f"engine {name} on {socket.gethostname()}",
                "let all nodes use one environment, on a file system that they share",
            )
        return digest

    def engine_of(self, model: str, row: str) -> str:
        """Identity of the engine that a row's file is made and measured in."""
        return self.engine(self.project.engine_of(model, row))

    def generating_engine(self, model: str, row: str) -> str:
        """Identity of the engine that generates text with a row's file: llama.cpp, or a refusal."""
        if not self.project.generates(model, row):
            raise QuantmillError(
                f"{row} of {model} is of engine ik, in which nothing generates",
                self.project.file,
                "ask for its kld, perplexity and speed",
            )
        return self.engine()
