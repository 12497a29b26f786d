"""Long stages spread over several jobs, as `shards` of the config wants: a setting of the run, in no spec.

Each shard puts units into the store and leaves an empty file, which is removed once the stage has
put them together. There are no more shards than units.
"""

from __future__ import annotations

from typing import Any, Final

from quantmill.config.corpora import Chunks
from quantmill.flow.inputs import Inputs
from quantmill.formats.settings import CHUNKS_A_UNIT
from quantmill.shards import Shard

_PROBLEMS: Final = 164  # of HumanEval


class Shards:
    """The files that the shards of each stage leave; functions of Snakemake's wildcards."""

    def __init__(self, inputs: Inputs):
        self.inputs, self.project = inputs, inputs.project

    def imatrix(self, wildcards: Any) -> list[str]:
        """Of the importance matrix."""
        return self._files("imatrix", wildcards, _units(self.project.calibration(wildcards.model)))

    def moments(self, wildcards: Any) -> list[str]:
        """Of the second moments: of some inputs each."""
        return self._files("moments", wildcards, self.project.config.shards)

    def sensitivity(self, wildcards: Any) -> list[str]:
        """Of the sensitivity: of some errors each, and of some probes of each batch."""
        return self._files("sensitivity", wildcards, self.project.config.shards)

    def gguf(self, wildcards: Any) -> list[str]:
        """Of a quantized file: of some tensors each."""
        return self._files(f"gguf/{wildcards.recipe}", wildcards, self.project.config.shards)

    def kld(self, wildcards: Any) -> list[str]:
        """Of a divergence."""
        chunks = self.project.chunks(wildcards.model, "kld")
        return self._files(f"kld/{wildcards.row}", wildcards, _units(chunks))

    def perplexity(self, wildcards: Any) -> list[str]:
        """Of a perplexity; none where the divergence has evaluated the same text."""
        same = self.inputs.divergence(wildcards.model, wildcards.row)
        chunks = self.project.chunks(wildcards.model, "perplexity")
        return self._files(f"perplexity/{wildcards.row}", wildcards, 1 if same else _units(chunks))

    def embeddings(self, wildcards: Any) -> list[str]:
        """Of the embeddings."""
        chunks = self.project.chunks(wildcards.model, "embeddings")
        return self._files(f"embeddings/{wildcards.row}", wildcards, _units(chunks))

    def humaneval(self, wildcards: Any) -> list[str]:
        """Of HumanEval: of some problems each."""
        problems = self.project.humaneval(wildcards.model).limit or _PROBLEMS
        return self._files(f"humaneval/{wildcards.row}", wildcards, problems)

    def _files(self, kind: str, wildcards: Any, units: int) -> list[str]:
        total = min(self.project.config.shards, units)
        if total < 2 or hasattr(wildcards, "shard"):  # a shard waits for none
            return []
        folder = self.project.results / wildcards.model / "shards" / kind
        return [str(folder / str(Shard(number, total))) for number in range(total)]


def _units(chunks: Chunks) -> int:
    return -(-chunks.chunks // CHUNKS_A_UNIT)
