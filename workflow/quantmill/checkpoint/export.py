"""A Hugging Face checkpoint, its MLP weights as NVFP4: a folder that vLLM takes.

Weights only (W4A16), unless the largest inputs of the weights were calibrated:
then activations may become NVFP4 where the model runs (W4A4).
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantmill import command
from quantmill.checkpoint.check import check
from quantmill.checkpoint.forms import CONFIG, FORMS, QUANT_CONFIG, Form
from quantmill.checkpoint.modules import Part, find, inputs_of, unchanged_modules
from quantmill.checkpoint.safetensors import INDEX, Checkpoint, Tensor, Writer
from quantmill.errors import QuantmillError
from quantmill.files import building, read_mapping, write_json
from quantmill.formats.importance import ACTIVATIONS
from quantmill.formats.publication import CHECKPOINT, Calibration, ErrorSpread, OfDtype, QuantizedWeight
from quantmill.formats.publication import Checkpoint as CheckpointReport
from quantmill.formats.publication import Part as File
from quantmill.formats.settings import Export
from quantmill.nvfp4 import values as nvfp4
from quantmill.progress import BYTES, Log
from quantmill.spec import file_sha256

# Weights in whatever form, and what is written anew or speaks of the source alone.
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".ckpt"}
_NOT_CARRIED = {CONFIG, QUANT_CONFIG, INDEX, "pytorch_model.bin.index.json", "README.md"}


def read_config(folder: Path) -> dict[str, Any]:
    """The source's config.json; QuantmillError where it says that the weights are quantized already."""
    config = read_mapping(folder / CONFIG)
    if "quantization_config" in config or (folder / QUANT_CONFIG).exists():
        raise QuantmillError("is quantized already", folder, "take the checkpoint in BF16 or F16")
    return config


def layers_of(config: dict[str, Any]) -> int | None:
    """The number of layers, of a model with vision those of its language model; None where there is none."""
    text = config.get("text_config", config)
    layers = text.get("num_hidden_layers") if isinstance(text, dict) else None
    return layers if type(layers) is int else None


def carried(folder: Path) -> list[Path]:
    """The files that go along unchanged: tokenizer, generation settings, code, licence."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    return [path for path in files if path.suffix not in _WEIGHTS and path.name not in _NOT_CARRIED]


def write_weights(
    form: Form,
    folder: Path,
    source: Checkpoint,
    groups: list[list[Part]],
    unchanged: list[Tensor],
    inputs: dict[str, float],
    pool: Executor,
    done: Callable[[int], None],
) -> None:
    """The tensors, in files of the source's names, and their index where the source has one.

    One group of matrices is in memory at a time: gate and up, which share a scale.
    `inputs` has the largest magnitude that enters each, where activations are
    quantized too.
    """
    outputs = outputs_of(form, groups, unchanged)
    with ExitStack() as stack:
        writers = {
            shard: stack.enter_context(
                Writer(folder / shard.name, [tensor for tensor in outputs if tensor.file == shard])
            )
            for shard in source.shards
        }
        for tensor in unchanged:
            writers[tensor.file].put(tensor.name, source.data(tensor))
            done(tensor.bytes)
        for group in groups:
            scale = nvfp4.tensor_scale(max(_largest(part, source, pool) for part in group))
            for part in group:
                bits = part.bits(source)
                codes, scales = nvfp4.quantize(bits, part.tensor.dtype, scale, pool)
                made: list[NDArray[Any]] = [codes, scales, np.full(form.shape, form.stored(scale))]
                if form.activations:
                    made.append(np.full(form.shape, form.input_scale(inputs[part.module])))
                for tensor, data in zip(form.outputs(part), made, strict=True):
                    writers[tensor.file].put(tensor.name, data)
                done(bits.nbytes)
    if source.index is not None:
        metadata = {**source.index.get("metadata", {}), "total_size": sum(tensor.bytes for tensor in outputs)}
        placed = {tensor.name: tensor.file.name for tensor in outputs}
        write_json(folder / INDEX, {"metadata": metadata, "weight_map": placed})


def outputs_of(form: Form, groups: list[list[Part]], unchanged: list[Tensor]) -> list[Tensor]:
    """All tensors of the new checkpoint; `file` is the source's file, by whose name theirs goes."""
    return [*unchanged, *(tensor for group in groups for part in group for tensor in form.outputs(part))]


def _largest(part: Part, source: Checkpoint, pool: Executor) -> float:
    largest = nvfp4.largest(part.bits(source), part.tensor.dtype, pool)
    if largest is None:
        raise QuantmillError("has values that are not finite", part.tensor.name, "the source is broken")
    return largest


def report(
    form: Form,
    folder: Path,
    source: Checkpoint,
    config: dict[str, Any],
    recipe: str,
    rows: list[QuantizedWeight],
    exclude: list[str],
    calibration: Calibration | None,
) -> CheckpointReport:
    """`checkpoint/<model>-<recipe>.json` of docs/files.md: what the folder holds, and how far it is off."""
    tensors = list(Checkpoint(folder).tensors.values())
    files: list[File] = [
        {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
    ]
    parameters = sum(math.prod(tensor.shape) for tensor in source.tensors.values())
    size = sum(tensor.bytes for tensor in tensors)
    return {
        "recipe": recipe,
        "form": form.name,
        "quant_algo": form.algorithm,
        "calibration": calibration,
        "architectures": config.get("architectures"),
        "layers": layers_of(config),
        "parameters": parameters,
        "quantized_parameters": sum(math.prod(row["shape"]) for row in rows),
        "bpw": size * 8 / parameters,
        "bytes": sum(file["bytes"] for file in files),
        "files": files,
        "dtypes": by_dtype(tensors),
        "source": {
            "bytes": sum(tensor.bytes for tensor in source.tensors.values()),
            "files": [path.name for path in source.shards],
            "dtypes": by_dtype(source.tensors.values()),
        },
        "exclude": exclude,
        "error": spread(rows),
        "by_role": {
            role: spread([row for row in rows if row["role"] == role])
            for role in sorted({row["role"] for row in rows})
        },
        "quantized": rows,
    }


def by_dtype(tensors: Iterable[Tensor]) -> dict[str, OfDtype]:
    """How many tensors and bytes there are of each dtype."""
    totals: dict[str, OfDtype] = {}
    for tensor in tensors:
        entry = totals.setdefault(tensor.dtype, {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += tensor.bytes
    return dict(sorted(totals.items()))


def spread(rows: list[QuantizedWeight]) -> ErrorSpread:
    """The relative errors of some matrices: how many there are, mean, largest, and whose it is."""
    worst = max(rows, key=lambda row: row["error"])
    mean = round(math.fsum(row["error"] for row in rows) / len(rows), 6)
    return {"matrices": len(rows), "mean": mean, "max": worst["error"], "name": worst["name"]}


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `checkpoint.export`."""
    settings: Export = args.spec["config"]
    form = replace(FORMS[settings["form"]], activations=args.activations is not None)
    config = read_config(args.source)
    source = Checkpoint(args.source)
    groups = find(source.tensors, layers_of(config))
    parts = [part for group in groups for part in group]
    quantized = [part.module for part in parts]
    activations = ACTIVATIONS.read(args.activations) if form.activations else None
    inputs = inputs_of(groups, activations["largest"]) if activations else {}
    calibration: Calibration | None = activations and {
        "corpus": activations["corpus"],
        "chunks": activations["chunks"],
        "context": activations["context"],
    }
    taken = {part.tensor.name for part in parts}
    unchanged = [tensor for tensor in source.tensors.values() if tensor.name not in taken]
    modules = unchanged_modules(unchanged, quantized)
    total = sum(tensor.bytes for tensor in source.tensors.values())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(tensor.bytes for tensor in outputs_of(form, groups, unchanged))
    if (free := shutil.disk_usage(args.out.parent).free) < needed:
        raise QuantmillError(
            f"needs {needed:,} bytes, the disk has {free:,} left", args.out, "free some space"
        )
    with ThreadPoolExecutor(args.threads) as pool, building(args.out) as folder:
        for path in carried(args.source):
            shutil.copyfile(path, folder / path.name)
        with log.progress("export", total, BYTES) as progress:
            write_weights(form, folder, source, groups, unchanged, inputs, pool, progress.add)
        exclude = form.write(folder, config, modules, quantized)
        with log.progress("check", total, BYTES) as progress:
            rows = check(form, folder, source, parts, unchanged, inputs, pool, progress.add)
        form.check(folder, quantized, modules)
        facts = report(form, folder, source, config, settings["recipe"], rows, exclude, calibration)
    CHECKPOINT.write(args.report, facts)
    log.say(
        f"{len(parts)} matrices as NVFP4, {len(unchanged)} tensors as they were; {facts['bytes']:,} bytes; "
        f"relative error {facts['error']['mean']} on average, {facts['error']['max']} at most"
    )


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True)
    arguments.add_argument("--source", type=Path, required=True, help="folder of the checkpoint")
    arguments.add_argument("--activations", type=Path, nargs="?", help="JSON of the largest inputs: W4A4")
    arguments.add_argument("--out", type=Path, required=True, help="the new folder")
    arguments.add_argument("--report", type=Path, required=True, help="JSON of what it holds")
    command.run(arguments, main)
