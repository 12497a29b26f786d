"""The model whose weights the probes replace: the source, or its expansion where the source is quantized."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path

from quantmill.engine.ggml import Bytes, Conversion
from quantmill.errors import QuantmillError
from quantmill.formats import ggufio, types
from quantmill.quantize.write import Source

_EXPANDED = "f16"


class Expansion:
    """The source's tensors in the precision of the probes: quantized ones as f16, others unchanged."""

    def __init__(self, source: Source, pool: Executor, threads: int) -> None:
        self._source, self._pool, self._threads = source, pool, threads

    @property
    def needed(self) -> bool:
        """Whether any tensor of the source is quantized."""
        return any(types.is_quantized(tensor.type) for tensor in self._source.header.tensors)

    def precision(self, name: str) -> str:
        """The type in which a tensor is probed."""
        kind = self._source.tensors[name].type
        return _EXPANDED if types.is_quantized(kind) else kind

    def bytes(self) -> int:
        """Bytes of all tensors in that precision."""
        tensors = self._source.header.tensors
        return sum(types.tensor_bytes(self.precision(tensor.name), tensor.shape) for tensor in tensors)

    def data(self, name: str) -> Bytes:
        """A tensor's bytes in that precision."""
        tensor, data = self._source.tensors[name], self._source.data(name)
        return data if tensor.type == self.precision(name) else self.convert(name, data, tensor.type)

    def convert(self, name: str, data: Bytes, kind: str) -> Bytes:
        """A tensor's bytes, converted from `kind` to the precision of the probes, rounded to nearest even.

        QuantmillError where a value is not finite in that precision.
        """
        shape = self._source.tensors[name].shape
        shape = shape if len(shape) > 1 else (*shape, 1)
        precision = self.precision(name)
        return Conversion(self._pool, self._threads, data, kind, precision, shape, None).result()

    @contextmanager
    def model(self, folder: Path) -> Iterator[Path]:
        """A GGUF to load: the source itself, or a file in `folder` that is deleted after the block."""
        header = self._source.header
        if not self.needed:
            yield header.path
            return
        folder.mkdir(parents=True, exist_ok=True)
        listed = [(t.name, types.TYPES[self.precision(t.name)].id, t.shape) for t in header.tensors]
        dropped = ("split.no", "split.count", "split.tensors.count", "general.alignment")
        kv = {key: value for key, value in header.kv.items() if key not in dropped}
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".expanded-", suffix=".gguf") as file:
            try:
                file.write(ggufio.serialize(kv, listed))
                for tensor in header.tensors:
                    data = self.data(tensor.name)
                    file.write(data.data)
                    file.write(bytes(-data.nbytes % ggufio.ALIGNMENT))
                file.flush()
            except OSError as error:
                what = f"the source as {_EXPANDED} ({self.bytes():,} bytes) cannot be written"
                raise QuantmillError(f"{what} ({error.strerror})", folder, "free some space") from error
            yield Path(file.name)
