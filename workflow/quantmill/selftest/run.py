"""Evaluate small models in an engine and in numpy, and compare: python -m quantmill.selftest.run.

`make env` runs it in a process of its own, since a library that was built for
another machine, or wrongly, dies by a signal. What is tried is printed before it
is tried, so that the last line says what killed it. Exit code 3: the engine's
values are wrong, and the last line says which. Exit code 4: it cannot be loaded.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantmill.engine import library, loader
from quantmill.engine.evaluator import Evaluator
from quantmill.errors import QuantmillError
from quantmill.selftest import reference
from quantmill.selftest.model import CONTEXT, VOCABULARY, Values, generate

# How far a token's logits may be from numpy's, relative to their length. ggml rounds the
# inputs of a multiplication to the weight's precision (to 8 bits for 8 bits and fewer) and
# the attention's to f16. Seen at most, of 512 tokens on AVX-512 and AVX2: f32 and f16 0.002,
# bf16 0.009, the others 0.06. A kernel that loses one product in 32 is 0.18 off.
TOLERANCES: Final = {
    "f32": 0.01,
    "f16": 0.02,
    "bf16": 0.03,
    "q8_0": 0.1,
    "q4_0": 0.1,
    "q4_K": 0.1,
    "q6_K": 0.1,
    "iq4_xs": 0.1,
}
# ik_llama.cpp's kernel for one token at a time is coarser: 0.18 seen.
_COARSER: Final = {("ik", "iq4_xs"): 0.4}
# One logit alone may be off by so many times more, relative to their deviation: the largest
# of 262,144 normal errors is 4.6 times as large as their deviation.
_SINGLE: Final = 6

# What the types may lose of normal weights, relative to their length: 4 bits lose 0.09.
_LOST: Final = 0.15

_TOKEN_BY_TOKEN: Final = 16  # tokens
_WRONG, _NOT_LOADED = 3, 4  # exit codes

Say = Callable[[str], None]


class WrongValuesError(Exception):
    """An engine's values are not those of numpy."""


def main() -> None:
    """Try every type, dense and with experts, until values are wrong."""
    arguments = argparse.ArgumentParser(description="Compare an engine's values with numpy's.")
    arguments.add_argument("--engine", choices=sorted(library.ENGINES), default="mainline")
    engine = arguments.parse_args().engine
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait leave the cores to others
    try:
        library.bindings(engine)
    except QuantmillError as error:
        sys.exit(f"error: {error}")
    except (OSError, RuntimeError) as error:  # a library that it needs is not here
        print(" ".join(str(error).split()), flush=True)
        sys.exit(_NOT_LOADED)
    try:
        for experts, type_name in itertools.product((False, True), TOLERANCES):
            examine(engine, type_name, experts, lambda tried: print(tried, flush=True))
    except (WrongValuesError, QuantmillError) as error:
        print(error, flush=True)
        sys.exit(_WRONG)


def examine(engine: str, type_name: str, experts: bool, say: Say) -> None:
    """Evaluate a model of one type in a batch and token by token; WrongValuesError where it is not numpy's.

    llama.cpp does it twice: with the weights rearranged for this processor's
    kernels, and as the file has them.
    """
    name = f"{type_name} weights, {'with experts' if experts else 'dense'}"
    say(f"{name}, quantized")
    model = generate(type_name, experts=experts)
    if not model.lost <= _LOST:
        raise WrongValuesError(
            f"{name}: quantizing loses {model.lost:.2f} of a weight, where {_LOST} is much"
        )
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, CONTEXT, np.int32)
    expected, certain = reference.logits(model.values, tokens)
    tolerance = _COARSER.get((engine, type_name), TOLERANCES[type_name])

    def check(tried: str, evaluate: Callable[[], Values]) -> None:
        say(tried)
        got = evaluate()
        count = len(got)
        fault = compare(got[certain[:count]], expected[:count][certain[:count]], tolerance)
        if fault is not None:
            raise WrongValuesError(f"{tried}: {fault}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        model.write(path)
        for in_place in (False, True) if engine == "mainline" else (False,):
            how = f"{name}, in place" if in_place else name
            say(f"{how}, loaded")
            with _load(engine, path, in_place) as loaded:
                check(f"{how}, batch of {CONTEXT}", lambda: _batch(loaded, tokens))
                check(f"{how}, token by token", lambda: _one_by_one(loaded, tokens[:_TOKEN_BY_TOKEN]))


def compare(got: Values, expected: Values, tolerance: float) -> str | None:
    """What is wrong with logits [tokens, vocabulary]; None where rounding explains how they differ."""
    if not np.isfinite(got).all():
        return "NaN or infinity among the logits"
    size = np.sqrt(np.mean(expected * expected, -1, keepdims=True))
    error = np.abs(got - expected) / size
    of_token, single = float(np.sqrt(np.mean(error * error, -1)).max()), float(error.max())
    if of_token <= tolerance and single <= _SINGLE * tolerance:
        return None
    return (
        f"a token's logits are up to {of_token:.3f} off and one logit {single:.3f}, "
        f"where rounding explains {tolerance} and {_SINGLE * tolerance:.2f}"
    )


def _load(engine: str, path: Path, in_place: bool) -> Evaluator:
    """The model on the CPU, whose kernels were compiled here; on two threads, for each sets itself up."""
    if engine == "ik":
        return loader.load(path, context=CONTEXT, batch=CONTEXT, threads=2)
    from quantmill.engine import mainline

    return mainline.Evaluator(path, context=CONTEXT, batch=CONTEXT, threads=2, writable=in_place, gpus=False)


def _batch(loaded: Evaluator, tokens: NDArray[np.int32]) -> Values:
    loaded.decode(tokens, 0)
    logits = loaded.logits(len(tokens)).copy()
    loaded.clear()
    return logits


def _one_by_one(loaded: Evaluator, tokens: NDArray[np.int32]) -> Values:
    rows = []
    for position in range(len(tokens)):
        loaded.decode(tokens[position : position + 1], position)
        rows.append(loaded.logits(1)[0].copy())
    return np.array(rows)


if __name__ == "__main__":
    main()
