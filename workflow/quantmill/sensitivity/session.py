"""The probes of one model on one corpus, each a unit of the store. The model is loaded if one is missing."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from quantmill import machine
from quantmill.engine.evaluator import Tokens
from quantmill.engine.mainline import Evaluator
from quantmill.errors import QuantmillError
from quantmill.measure import embeddings
from quantmill.measure.score import with_bos
from quantmill.progress import Log
from quantmill.quantize.kernels import Quantizer
from quantmill.quantize.write import Source
from quantmill.sensitivity import errors
from quantmill.sensitivity.candidates import Choice
from quantmill.sensitivity.expand import Expansion
from quantmill.sensitivity.probe import Embedded, Prober, Replaced
from quantmill.stages import VERSIONS
from quantmill.store import Store

_MORE_MEMORY: Final = 300 << 20  # the evaluation's own buffers, about
_ROUNDED: Final = 4  # chunks that suffice for the rounding of activations: it hardly differs between them


@dataclass(frozen=True)
class ProbeResult:
    """The result of a probe: the mean KLD, or the distance, of each chunk (NaN where what the model gives are
    no numbers).

    In seconds: `quantize` the tensor's quantizing, `forward` the forward passes,
    `seconds` all but the quantizing. The fields' names are those of the store's units.
    """

    kld: list[float]
    seconds: float
    forward: float
    quantize: float = 0.0

    @property
    def finite(self) -> bool:
        """Whether every chunk's value is a number."""
        return bool(np.isfinite(self.kld).all())

    @property
    def mean(self) -> float:
        """The mean KLD, nats."""
        return float(np.mean(self.kld))

    @property
    def se(self) -> float:
        """Its standard error, over the chunks; NaN for one chunk."""
        return float(np.std(self.kld, ddof=1) / np.sqrt(len(self.kld))) if len(self.kld) > 1 else float("nan")


class Session:
    """Probes of a source's choices on chunks [n, context]: of a model that embeds, by the distance."""

    def __init__(
        self,
        source: Source,
        names: set[str],
        chunks: Tokens,
        *,
        identity: dict[str, str],
        quantizer: Quantizer,
        pool: Executor,
        folder: Path,
        log: Log,
        embeds: bool = False,
    ) -> None:
        self._source, self._names, self._chunks = source, names, chunks
        self._quantizer, self._pool, self._folder, self._log = quantizer, pool, folder, log
        self.expansion = Expansion(source, pool, quantizer.threads)
        self._embeds = embeds
        tokens = hashlib.sha256(chunks.astype("<i4").tobytes()).hexdigest()
        self._identity: dict[str, Any] = {**identity, "tokens": tokens, "shape": list(chunks.shape)}
        if embeds:
            self._identity["loss"] = "distance"
        self._stack = ExitStack()
        self._prober: Replaced | None = None

    def probe(self, choice: Choice) -> ProbeResult:
        """The KLD of the model with this tensor alone at this type."""
        task = choice.task.key(self._quantizer.engine)
        return self._unit("probe", lambda: self._probe(choice), task=task, name=choice.name)

    def noise_floor(self, after: Sequence[Choice] = ()) -> ProbeResult:
        """The KLD of the model from itself after those probes: exactly 0, else a QuantmillError."""
        probed = [choice.task.key(self._quantizer.engine) for choice in after]
        return self._unit("floor", self._noise_floor, after=probed)

    def refuse_if_changed(self) -> None:
        """QuantmillError where the model, if it was loaded here, differs from itself: its probes are void."""
        if self._prober is not None:
            self._noise_floor()

    def used(self) -> set[str]:
        """The names of those tensors that the model's graph uses."""
        unit = self._quantizer.store.get_or_make(self._key("used"), self._used)
        return set(json.loads(bytes(unit)))

    def rounding(self) -> dict[str, list[float]]:
        """The error of rounding the input of each tensor that is multiplied, as of `errors.rounding`."""
        unit = self._quantizer.store.get_or_make(self._key("rounded"), self._rounding)
        return dict(json.loads(bytes(unit)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _unit(self, kind: str, make: Callable[[], ProbeResult], **more: Any) -> ProbeResult:
        unit = self._quantizer.store.get_or_make(
            self._key(kind, **more), lambda: json.dumps(asdict(make())).encode(), leased=True
        )
        return ProbeResult(**json.loads(bytes(unit)))

    def _key(self, kind: str, **more: Any) -> str:
        return Store.key(f"sensitivity.{kind}", VERSIONS["sensitivity.probe"], **self._identity, **more)

    def _probe(self, choice: Choice) -> ProbeResult:
        prober, expansion, name = self._loaded(), self.expansion, choice.name
        start = time.monotonic()
        data = np.frombuffer(self._quantizer.start(choice.task, self._source.data(name))(), np.uint8)
        quantize = time.monotonic() - start
        try:
            data = expansion.convert(name, data, choice.type)
        except QuantmillError:  # a value that is NaN, or too large for the precision
            return ProbeResult([float("nan")] * len(self._chunks), 0.0, 0.0, quantize)
        probe = prober.probe(name, data, expansion.data(name))
        seconds = time.monotonic() - start - quantize
        return ProbeResult(probe.kld.tolist(), seconds, probe.forward, quantize)

    def _noise_floor(self) -> ProbeResult:
        probe = self._loaded().measure()
        if not (probe.kld == 0).all():
            raise QuantmillError(
                f"the source against itself gives a KLD of {np.abs(probe.kld).max():.3g}, not 0",
                self._source.header.path,
                "evaluating is not reproducible on this machine; delete the store, whose probes are void",
            )
        return ProbeResult(probe.kld.tolist(), probe.seconds, probe.forward)

    def _used(self) -> bytes:
        weights = self._loaded().weights
        return json.dumps(sorted(name for name in self._names if name in weights)).encode()

    def _rounding(self) -> bytes:
        context, threads, inputs = self._chunks.shape[1], self._quantizer.threads, errors.Inputs()
        self._log.say("observing the inputs of the weights")
        with (
            self.expansion.model(self._folder) as path,
            Evaluator(path, context=context, batch=context, threads=threads, observe=inputs) as model,
        ):
            for chunk in self._chunks[:_ROUNDED]:
                model.clear()
                model.decode(with_bos(chunk, model.bos), 0, context // 2)
        expansion, rounded = self.expansion, {}
        for name in sorted(self._source.tensors.keys() & inputs.sums.keys()):
            kind, shape = expansion.precision(name), self._source.tensors[name].shape
            if len(shape) < 2:  # never quantized: the gate of a shared expert
                continue
            sums, data = inputs.sums[name], expansion.data(name)
            rounded[name] = errors.rounding(sums, data, kind, shape, name, self._pool)
        return json.dumps(rounded).encode()

    def refuse_if_short(self) -> None:
        """QuantmillError where the free memory cannot hold the model and its logits of the chunks."""
        vocabulary = self._source.tensors["token_embd.weight"].shape[1]
        count, context = self._chunks.shape
        reference = 4 * vocabulary * (context // 2) * (count + 2)
        needed = self.expansion.bytes() + reference + _MORE_MEMORY
        memory = machine.memory()
        if memory.available < needed:
            raise QuantmillError(
                f"needs {needed:,} bytes of memory to be probed ({self.expansion.bytes():,} for its weights, "
                f"{reference:,} for its predictions), and {memory.where} has {memory.available:,} left",
                self._source.header.path,
                "use a larger machine, or fewer chunks",
            )

    def _loaded(self) -> Replaced:
        if self._prober is None:
            context, threads = self._chunks.shape[1], self._quantizer.threads
            self.refuse_if_short()
            with self.expansion.model(self._folder) as path:
                self._log.say("loading the model and evaluating it unchanged")
                if self._embeds:
                    header = self._source.header
                    embedder = embeddings.load(path, header, context, threads, writable=True)
                    self._stack.enter_context(embedder)
                    self._prober = Embedded(embedder, embedder.weights(self._names), self._chunks)
                    return self._prober
                model = self._stack.enter_context(
                    Evaluator(path, context=context, batch=context, threads=threads, writable=True)
                )
            self._prober = Prober(model, model.weights(self._names), self._chunks, self._pool)
        return self._prober
