"""A recipe resolved for one model: the type of each tensor and the reason, before any work is done.

The mixture of the base comes from llama.cpp's dry run without overrides. The
rules are applied to it afterwards: an override within llama.cpp would change
the types of tensors that it does not name. Sizes are exact, with metadata.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from quantmill import command
from quantmill.engine.dryrun import Mixture
from quantmill.errors import QuantmillError
from quantmill.files import read_user_text, write_text
from quantmill.formats import allocation as formats
from quantmill.formats.ggufio import Header, Tensor, padded, serialize
from quantmill.formats.output import ImatrixFacts, llama_order, output_kv
from quantmill.formats.plan import MADE, PlanRow, with_scale, write_plan
from quantmill.formats.settings import ImatrixFile
from quantmill.formats.settings import Plan as Settings
from quantmill.formats.types import (
    EXEMPT,
    IK_TYPES,
    NO_GRID,
    fallback,
    fed_back,
    is_quantized,
    known,
    needs_imatrix,
    takes_feedback,
    tensor_bytes,
)
from quantmill.model.header import read_source
from quantmill.model.heads import for_file, has_values
from quantmill.model.roles import layer_of, role_of
from quantmill.nvfp4.gguf import scalable, scale_name, weights_only
from quantmill.progress import Log
from quantmill.recipe import presets, render, rules, shares
from quantmill.recipe.keep import kept
from quantmill.recipe.mtp import REFUSED_BY_IK, file_part

# A layer of multi-token prediction has no importance values: this type replaces one that needs them.
_WITHOUT_IMPORTANCE: Final = "q4_K"
# Why a per-tensor scale is in the plan. Plans are compared byte by byte, so the old words stay.
_NONE: Final[Mapping[str, str]] = {}
_SCALE_REASON: Final = "second scale of its weight"


@dataclass(frozen=True)
class Plan:
    """The rows, in the order of the file; `fallbacks` by tensor the type of the recipe that does not fit."""

    recipe: rules.Recipe
    rows: tuple[PlanRow, ...]
    fallbacks: dict[str, str]
    quantizable: frozenset[str]
    imatrix: bool
    warnings: tuple[str, ...]


def resolve(
    header: Header,
    recipe: rules.Recipe,
    mixture: Mixture,
    *,
    imatrix: bool,
    where: object,
    keep: Mapping[str, str] = _NONE,
    mtp: bool = False,
) -> Plan:
    """The plan of `recipe` for a model; `imatrix` says whether one will be used, `mtp` whether it has values
    of the draft head.

    `mixture` is that of the base, made with the same `imatrix`. `where` is the
    recipe's file, for errors; `keep` are the types of tensors that stay without
    loss. QuantmillError for a rule that does nothing, for a type that needs an
    imatrix where there is none, and for a plan that equals that of its base.
    """
    decided = rules.assign(recipe, header, mixture.quantizable, where)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    evaluated = header.layers if mtp else header.evaluated
    rows, fallbacks = [], {}
    for name in llama_order(tensors):
        tensor, rule = tensors[name], decided.get(name)
        intended = rule.type if rule else mixture.fallbacks.get(name, mixture.types[name])
        kind = (
            _fallback(intended, tensor, recipe.engine, f"{where}: {rule.label}")
            if rule
            else mixture.types[name]
        )
        reasons = [_reason(recipe, rule, name in mixture.quantizable)]
        missing = imatrix and layer_of(name) >= evaluated > 0 and _needs_imatrix(recipe, kind, name)
        if rule is None and missing:
            reasons.append(f"no importance values for {kind}")
            intended = kind = fallback(_WITHOUT_IMPORTANCE, tensor.shape[0], recipe.engine)
        if name in keep and name in mixture.quantizable:
            intended = kind = keep[name]
            reasons = [f"on the grid of {kind}, which is kept"]
        if kind != intended:
            fallbacks[name] = intended
            block = known(intended).block_elements
            reasons.append(f"fallback from {intended}: width {tensor.shape[0]} is no multiple of {block}")
        if kind == tensor.type and name in mixture.quantizable:
            reasons.append(f"already {kind}")
        size = tensor_bytes(kind, tensor.shape)
        rows.append(
            PlanRow(
                name, role_of(name), layer_of(name), tensor.shape, tensor.type, kind, size, "; ".join(reasons)
            )
        )
    rows, unscaled = _with_scales(header, recipe, rows)
    warnings = [*recipe.notes, *_warnings(rows, fallbacks, mixture.quantizable), *unscaled]
    if recipe.rules and all(row.made or row.type == mixture.types[row.name] for row in rows):
        same = f"the plan equals that of its base {recipe.base.name} on this model"
        if not all(rule.optional for rule in recipe.rules):
            raise QuantmillError(same, where, f"use {recipe.base.name} itself, or change the rules")
        warnings.append(f"{same}: no rule changes a type")
    check_imatrix(header, recipe, rows, imatrix, where, mtp)
    return Plan(recipe, tuple(rows), fallbacks, mixture.quantizable, imatrix, tuple(warnings))


def check_rounding(rows: Iterable[PlanRow], engine: str, where: object) -> None:
    """Refuse a type to which `rounding: gptq` cannot round; what the source has already is not rounded."""
    for row in rows:
        if row.type != row.source_type and not takes_feedback(row.type, engine):
            cure = f"choose {', '.join(sorted(fed_back(engine)))}, or give the recipe rounding: nearest"
            raise QuantmillError(f"{row.type} {NO_GRID} ({row.name})", where, cure)


def use_imatrix(recipe: rules.Recipe, configured: bool, where: object) -> bool:
    """Whether the recipe uses an imatrix. QuantmillError where it requires one and there is none."""
    if recipe.imatrix == "required" and not configured:
        raise QuantmillError("the recipe requires an imatrix", where, "configure `imatrix` in config.yaml")
    return configured and recipe.imatrix != "none"


def with_importance(header: Header, names: Iterable[str], imatrix: bool, mtp: bool = False) -> frozenset[str]:
    """The tensors among `names` that have importance values; none without an imatrix.

    Embeddings and output have none, nor has the draft head unless it was measured too (`mtp`).
    """
    evaluated = header.layers if mtp else header.evaluated
    return frozenset(
        name for name in names if imatrix and name not in EXEMPT and not layer_of(name) >= evaluated >= 0
    )


def metadata_bytes(header: Header, plan: Plan, imatrix: ImatrixFile | None) -> int:
    """Bytes of the output's header, which names the file and dataset of `imatrix`."""
    # The counts are u32: their values do not change the size.
    named: ImatrixFacts | None = None
    if imatrix is not None and plan.imatrix:
        named = {"file": imatrix["file"], "dataset": imatrix["dataset"], "entries": 1, "chunks": 1}
    kv = output_kv(header, plan.recipe.base.file_type, named)
    kv |= weights_only(header.kv, with_scale(plan.rows))
    tensors = [(row.name, known(row.type).id, row.shape) for row in plan.rows]
    return len(serialize(kv, tensors))


def report(
    header: Header,
    plan: Plan,
    name: str,
    imatrix: ImatrixFile | None,
    allocation: formats.Allocation | None = None,
) -> formats.Plan:
    """The plan in numbers; `allocation` is the report of a size-targeted recipe."""
    head = metadata_bytes(header, plan, imatrix)
    body = sum(padded(row.bytes) for row in plan.rows)
    parameters = sum(row.elements for row in plan.rows if not row.made)
    return {
        "recipe": name,
        "engine": plan.recipe.engine,
        "base": plan.recipe.base.name,
        "file_type": plan.recipe.base.file_type,
        "imatrix": plan.imatrix,
        "tensors": len(plan.rows),
        "parameters": parameters,
        "file_bytes": head + body,
        "tensor_bytes": body,
        "metadata_bytes": head,
        "bpw": (head + body) * 8 / parameters,
        "by_type": shares.by_type(plan.rows),
        "by_role": shares.by_role([row for row in plan.rows if row.name in plan.quantizable]),
        "bits": [
            {"role": row.role, "layer": row.layer, "bpw": row.bytes * 8 / row.elements, "type": row.type}
            for row in plan.rows
            if row.name in plan.quantizable
        ],
        "fallbacks": [
            {"name": row.name, "wanted": plan.fallbacks[row.name], "type": row.type}
            for row in plan.rows
            if row.name in plan.fallbacks
        ],
        "requantized": any(_requantized(row) for row in plan.rows),
        "source_types": dict(sorted(Counter(row.source_type for row in plan.rows if not row.made).items())),
        "rules": len(plan.recipe.rules),
        "allocation": None if allocation is None else _summary(allocation),
        "warnings": list(plan.warnings),
    }


def _summary(allocation: formats.Allocation) -> formats.AllocationSummary:
    return {
        "damage": allocation["damage"],
        "objective": allocation["objective"],
        "bound": allocation["bound"],
        "gap": allocation["gap"],
        "predicted_kld": allocation["predicted_kld"],
        "predicted_se": allocation["predicted_se"],
    }


def _with_scales(
    header: Header, recipe: rules.Recipe, rows: list[PlanRow]
) -> tuple[list[PlanRow], list[str]]:
    """The rows with the per-tensor scales of the nvfp4 weights, and a warning where some have none."""
    present = {tensor.name for tensor in header.tensors}
    fresh = [row.name for row in rows if row.type == "nvfp4" != row.source_type]
    scaled = set(scalable(header.architecture, fresh, present)) if recipe.scales else set()
    made = [
        PlanRow(
            name=scale_name(row.name),
            role="scale",
            layer=row.layer,
            shape=row.shape[2:] or (1,),
            source_type=MADE,
            type="f32",
            bytes=4 * math.prod(row.shape[2:]),
            reason=_SCALE_REASON,
        )
        for row in rows
        if row.name in scaled
    ]
    ordered = {row.name: row for row in [*rows, *made]}
    bare = sorted(set(fresh) - scaled)
    if not bare or not recipe.scales:
        return [ordered[name] for name in llama_order(ordered)], []
    what = f"{len(bare)} nvfp4 tensors, such as {bare[0]}, have no per-tensor scale, and so a larger error:"
    return [ordered[name] for name in llama_order(ordered)], [f"{what} llama.cpp applies none there"]


def _reason(recipe: rules.Recipe, rule: rules.Rule | None, quantizable: bool) -> str:
    if not quantizable:
        return "never quantized"
    if rule is not None:
        return rule.label
    return f"{recipe.base.name} for all" if recipe.base.type else f"{recipe.base.name}'s own mixture"


def _fallback(kind: str, tensor: Tensor, engine: str, here: str) -> str:
    try:
        return fallback(kind, tensor.shape[0], engine)
    except QuantmillError as error:
        raise QuantmillError(f"{tensor.name}: {error}", here) from None


def _requantized(row: PlanRow) -> bool:
    return row.type != row.source_type and is_quantized(row.source_type) and is_quantized(row.type)


def _warnings(
    rows: Sequence[PlanRow], fallbacks: Mapping[str, str], quantizable: frozenset[str]
) -> list[str]:
    warnings = []
    again = Counter(row.source_type for row in rows if _requantized(row))
    if again:
        what = ", ".join(f"{count} from {kind}" for kind, count in sorted(again.items()))
        warnings.append(
            f"{again.total()} tensors are quantized again ({what}): the source's own loss is added"
        )
    if fallbacks:
        warnings.append(
            f"{len(fallbacks)} of {len(quantizable)} tensors get another type than wanted,"
            " as their rows are no multiple of its block"
        )
    strange = [row.name for row in rows if row.role == "unknown"]
    if strange:
        warnings.append(
            f"{len(strange)} tensors have no known role, such as {strange[0]}: `match` alone reaches them"
        )
    foreign = sorted({row.type for row in rows} & IK_TYPES.keys())
    if foreign:
        own = f"it has ik_llama.cpp's own {', '.join(foreign)}"
        warnings.append(f"mainline llama.cpp cannot load this file: {own}")
    return warnings


def _needs_imatrix(recipe: rules.Recipe, kind: str, name: str) -> bool:
    own = recipe.base.name == "Q2_K_S" and kind == "q2_K" and name not in EXEMPT
    return own or needs_imatrix(kind, name)


def check_imatrix(
    header: Header, recipe: rules.Recipe, rows: Sequence[PlanRow], imatrix: bool, where: object, mtp: bool
) -> None:
    """Refuse types that need importance values for tensors that will have none."""
    important = with_importance(header, [row.name for row in rows], imatrix, mtp)
    for row in rows:
        if (
            not _needs_imatrix(recipe, row.type, row.name)
            or row.type == row.source_type
            or row.name in important
        ):
            continue
        here = f"{where}: {row.name} ({row.reason})"
        if row.name in EXEMPT:
            raise QuantmillError(
                f"{row.type} needs importance values, which it never has", here, "choose another type for it"
            )
        if not imatrix:
            cure = "configure `imatrix` in config.yaml"
            if recipe.imatrix == "none":
                cure = "set the recipe's `imatrix` to optional or required"
            raise QuantmillError(f"{row.type} needs an imatrix", here, f"{cure}, or choose another type")
        raise QuantmillError(
            f"{row.type} needs an imatrix, which no multi-token prediction layer has",
            here,
            "set `imatrix: {mtp: true}`, or give the recipe `mtp: {type: q4_K}` or another such type",
        )


def main(args: argparse.Namespace, log: Log) -> None:
    """Plan one recipe for one model."""
    config: Settings = args.spec["config"]
    whole = read_source(args.model)
    header = for_file(whole, config.get("mtp"))
    where = args.recipe
    if args.template is not None:
        where = f"recipe {config['recipe']} ({args.template})"
        write_text(args.recipe, render.rendered(args, config, whole, where, log))
    recipe = rules.parse(read_user_text(args.recipe), where)
    imatrix = use_imatrix(recipe, config["imatrix"] is not None, where)
    mtp = has_values(whole, config["imatrix"], args.model)
    mixture = presets.mixture(header, recipe.base, imatrix=imatrix)
    keep = kept(header, args.grids, recipe.engine, where)
    # A size-targeted recipe has chosen among the types already, and may have left the grid.
    given = keep.types if args.allocation is None else _NONE
    plan = resolve(header, recipe, mixture, imatrix=imatrix, where=where, keep=given, mtp=mtp)
    rows = plan.rows if given else keep.marked(plan.rows)
    plan = replace(plan, rows=rows, warnings=(*plan.warnings, *keep.warnings))
    if "rounding" in config:
        check_rounding(plan.rows, recipe.engine, where)
    allocation = None if args.allocation is None else formats.ALLOCATION.read(args.allocation)
    numbers = report(header, plan, config["recipe"], config["imatrix"], allocation)
    if "rounding" in config:
        numbers["rounding"] = config["rounding"]
    if "keep" in config:
        numbers["kept"] = keep.counted(plan.rows)
    if (part := file_part(config.get("mtp"))) is not None:
        numbers["mtp"] = part
    write_plan(args.plan, plan.rows)
    formats.PLAN.write(args.report, numbers)
    line = f"{numbers['recipe']}: {numbers['file_bytes']:,} bytes, {numbers['bpw']:.4f} bpw"
    if allocation is not None:
        line += f", {allocation['damage']} {allocation['objective']:.4g} (bound {allocation['bound']:.4g})"
    log.say(line)
    log.warn(plan.warnings)
    if recipe.engine == "ik" and header.has_mtp:
        log.say(f"{numbers['recipe']}: {REFUSED_BY_IK}")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument(
        "--model", type=Path, required=True, help="the source, its header, or manifest.tsv"
    )
    render.add_options(arguments)
    arguments.add_argument(
        "--recipe", type=Path, required=True, help="the recipe, as plain YAML: written where it is rendered"
    )
    arguments.add_argument("--grids", type=Path, nargs="?", help="manifest.tsv, to keep the grids in it")
    arguments.add_argument("--allocation", type=Path, nargs="?", help="the report of a size-targeted recipe")
    arguments.add_argument("--plan", type=Path, required=True, help="the plan, a table")
    arguments.add_argument("--report", type=Path, required=True, help="the plan in numbers, JSON")
    command.run(arguments, main)
