"""The tables of the card, as plain rows: what each file holds, and how it came by it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, groupby, pairwise
from typing import Any

from quantmill.judge import advice, compare, frontier
from quantmill.judge.results import SOURCE, Quant, Results, by_name
from quantmill.text import GIB, code, plural, size

_PANELS = 6
_PAIRED = 8


@dataclass(frozen=True)
class Row:
    """One row of the table "which file": a quant, or the source (then `file` is empty).

    A file in parts has no `sha256`: each part has its own.
    """

    name: str
    file: str
    type: str
    bytes: int
    bpw: float
    sha256: str
    kld: dict[str, Any] | None
    perplexity: dict[str, Any] | None
    difference: compare.Difference | None
    prompt: dict[str, Any] | None
    generate: dict[str, Any] | None
    humaneval: dict[str, Any] | None
    engine: str
    best: bool
    fastest: bool
    note: str


def rows(results: Results) -> list[Row]:
    """The source, then the quants, largest first."""
    best = frontier.best(results)
    fastest = max((q.speed["generate"]["mean"] for q in results.quants if q.speed), default=None)
    facts = results.facts
    source = Row(
        SOURCE, "", results.type, facts["bytes"], results.bpw, facts["sha256"], None,
        results.perplexity, None,
        _half(results.speed, "prompt"), _half(results.speed, "generate"), results.humaneval, "mainline",
        False, False,
        advice.source_note(results),
    )  # fmt: skip
    quants = [
        Row(
            quant.name, quant.file, quant.type, quant.bytes, quant.bpw,
            "" if quant.parts else quant.sha256, quant.kld,
            quant.perplexity, quant.difference, _half(quant.speed, "prompt"), _half(quant.speed, "generate"),
            quant.humaneval, str(quant.plan["engine"]), quant.name in best,
            quant.speed is not None and quant.speed["generate"]["mean"] == fastest,
            advice.note(quant, results),
        )
        for quant in results.quants
    ]  # fmt: skip
    return [source, *quants]


def pairs(results: Results) -> list[tuple[Quant, Quant, compare.Paired]]:
    """Any two files, the smaller first, with the paired difference of their KL divergences.

    Where there are more than `_PAIRED` files, of each and the next larger one.
    """
    if results.measure != "kld":
        return []
    if len(results.quants) <= _PAIRED:
        return [(one, larger, one.against(larger)) for larger, one in combinations(results.quants, 2)]
    return [(one, larger, one.against(larger)) for larger, one in pairwise(results.quants)]


def by_reason(quant: Quant) -> list[dict[str, Any]]:
    """How the tensors came by their types: reason, type, tensors, bytes and roles, most bytes first."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for tensor in quant.tensors:
        groups[tensor["reason"], tensor["type"]].append(tensor)
    found = [
        {
            "reason": reason,
            "type": type_,
            "tensors": len(members),
            "bytes": sum(tensor["bytes"] for tensor in members),
            "roles": _roles(members),
        }
        for (reason, type_), members in groups.items()
    ]
    return sorted(found, key=lambda group: -group["bytes"])


def starved(experts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Experts that saw few tokens, a row for the tensors of a layer that saw the same.

    `experts` are those of imatrix.json; a row has `tensors`, and `seen`: expert and tokens, fewest first.
    """
    seen: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for entry in experts:
        seen[entry["name"]].append((entry["count"], entry["expert"]))
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, counts in seen.items():
        block = ".".join(name.split(".")[:2])
        alike[block, *(f"{expert} ({count:,})" for count, expert in sorted(counts))].append(name)
    return [{"tensors": names, "seen": list(words)} for (_, *words), names in alike.items()]


def fallbacks(results: Results) -> list[dict[str, Any]]:
    """Types that a tensor's shape forced: per file and pair of types, how many, of which roles and widths."""
    found = []
    for quant in results.quants:
        tensors = {tensor["name"]: tensor for tensor in quant.tensors}
        groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for fallback in quant.plan["fallbacks"]:
            groups[fallback["wanted"], fallback["type"]].append(tensors[fallback["name"]])
        found += [
            {
                "name": quant.name,
                "wanted": wanted,
                "type": type_,
                "tensors": len(members),
                "of": len(tensors),
                "roles": _roles(members),
                "widths": sorted({int(tensor["shape"].split("x")[0]) for tensor in members}),
            }
            for (wanted, type_), members in groups.items()
        ]
    return found


def weights(quant: Quant) -> list[dict[str, Any]]:
    """The tensors that a recipe can speak of: matrices, bar those that are never quantized."""
    return [
        tensor
        for tensor in quant.tensors
        if not tensor["reason"].startswith("never")
        and tensor["shape"].count("x")
        and "norm" not in tensor["role"]
    ]


def roles(results: Results) -> list[str]:
    """Roles of the weights in any file: those of the blocks in the file's order, then those outside them."""
    found: dict[str, int] = {}
    for quant in results.quants:
        for tensor in weights(quant):
            found[tensor["role"]] = max(found.get(tensor["role"], -1), tensor["layer"])
    return sorted(found, key=lambda role: found[role] < 0)


def cells(quant: Quant) -> dict[tuple[str, int], tuple[float, str]]:
    """(bits per weight, type) by role and layer; layer -1 holds what stands outside the layers."""
    return {
        (tensor["role"], tensor["layer"]): (8 * tensor["bytes"] / tensor["parameters"], tensor["type"])
        for tensor in weights(quant)
    }


def bits_by_role(quant: Quant) -> dict[str, float]:
    """Bits per weight of each role, over all layers."""
    bytes_: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for tensor in weights(quant):
        bytes_[tensor["role"]] += tensor["bytes"]
        parameters[tensor["role"]] += tensor["parameters"]
    return {role: 8 * bytes_[role] / parameters[role] for role in bytes_}


def uneven(quant: Quant) -> tuple[list[str], list[str]]:
    """What stands above the type that holds the most bytes (protected), and below it (squeezed).

    Each entry reads `role (type, n of m)`; both are empty for a file of one type.
    """
    bits = {tensor["name"]: tensor["bytes"] * 8 / tensor["parameters"] for tensor in weights(quant)}
    main = [bits[tensor["name"]] for tensor in weights(quant) if tensor["type"] == quant.type]
    if not main:
        return [], []
    of_role = Counter(tensor["role"] for tensor in weights(quant))
    groups = Counter((t["role"], t["type"], bits[t["name"]]) for t in weights(quant))
    above: list[str] = []
    below: list[str] = []
    for (role, type_, value), number in groups.items():
        if value != main[0]:
            part = "" if of_role[role] == 1 else f", {number} of {of_role[role]}"
            (above if value > main[0] else below).append(f"{code(role)} ({type_}{part})")
    return above, below


def warnings(results: Results) -> list[tuple[str, list[str]]]:
    """All warnings of all stages: the text, and what said it; one that many say stands once."""
    said: dict[str, list[str]] = defaultdict(list)
    for warning in results.check["warnings"]:
        said[warning].append("source")
    for name, corpus in results.corpora.items():
        for warning in corpus["warnings"]:
            said[warning].append(f"corpus {name}")
    for warning in results.imatrix["warnings"] if results.imatrix else []:
        said[warning].append("imatrix")
    for warning in results.sensitivity["warnings"] if results.sensitivity else []:
        said[warning].append("sensitivity")
    if results.floor:
        said[
            f"the source's own predictions diverge from themselves by up to {results.floor:.1e}: "
            "its evaluation does not repeat exactly, and divergences about as small mean nothing"
        ].append("KL divergence")
    for quant in results.quants:
        for warning in quant.plan["warnings"]:
            said[warning].append(quant.name)
    return list(said.items())


def tried(quants: Iterable[Quant]) -> str:
    """How far all files were tried after they were written, in words."""
    how = {quant.tried for quant in quants}
    if "read" in how:
        return "the header of each file was read back after it was written"
    loaded = "each file was loaded by its engine after it was written"
    return loaded if "loaded" in how else f"{loaded}, and evaluated a few tokens"


def machines(results: Results) -> list[tuple[str, list[str]]]:
    """The machines that measured speed, in words, and which files each measured; one, if all is well."""
    found: dict[str, list[str]] = defaultdict(list)
    measured = [(SOURCE, results.speed), *((quant.name, quant.speed) for quant in results.quants)]
    for name, speed in measured:
        if speed:
            cpu, cores, memory = (speed["machine"][key] for key in ("cpu", "cores", "memory_bytes"))
            machine = f"{cpu}, {plural(cores, 'core')}, {size(memory)} memory"
            setting = f"{plural(speed['threads'], 'thread')}, backend {speed['backend']}"
            found[f"{machine}; {setting}"].append(name)
    return list(found.items())


def evaluated(results: Results, what: str) -> list[tuple[str, dict[str, Any]]]:
    """The measurements of one kind (`humaneval`, `served`), by the row's name, the source first."""
    found = [(SOURCE, getattr(results, what)), *((q.name, getattr(q, what)) for q in results.quants)]
    return [(name, measured) for name, measured in found if measured]


def task_rows(results: Results) -> list[tuple[str, dict[str, Any], list[tuple[str, dict[str, Any], str]]]]:
    """Per task and metric: its name, what the source scored, each file's score and its verdict beside it."""
    found = []
    for name, task in by_name(results.tasks):
        rows = [
            (quant.name, one, beside_source(results, quant, name))
            for quant in results.quants
            for own, one in by_name(quant.tasks)
            if own == name
        ]
        found.append((name, task, rows))
    return found


def beside_source(results: Results, quant: Quant, name: str) -> str:
    """The verdict of a file's score beside the source's, in words."""
    source = results.scores.get(name)
    if name in results.doubts or source is None or name not in quant.scores:
        return "no verdict"
    return compare.scores(quant.scores[name], source).verdict


def longest(quant: Quant) -> list[tuple[str, dict[str, int]]]:
    """The longest context (tokens) that fits, by cache; devices of which the same is true are one."""
    devices: dict[int, dict[str, int]] = defaultdict(dict)
    for fit in quant.memory["fits"] if quant.memory else []:
        devices[fit["total_bytes"] // GIB][fit["cache"]] = fit["context"]
    found = []
    for contexts, alike in groupby(devices.items(), key=lambda device: device[1]):
        sizes = [gib for gib, _ in alike]
        found.append((f"{sizes[0]} to {sizes[-1]} GB" if sizes[1:] else f"{sizes[0]} GB", contexts))
    return found


def _half(speed: dict[str, Any] | None, half: str) -> dict[str, Any] | None:
    return speed[half] if speed else None


def _roles(tensors: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(tensor["role"] for tensor in tensors))


def telling(quants: list[Quant]) -> list[Quant]:
    """At most six of the quants, largest first: those of more than one type, evenly from large to small."""
    mixed = [quant for quant in quants if len({tensor["type"] for tensor in weights(quant)}) > 1]
    chosen = quants if len(quants) <= _PANELS else mixed if len(mixed) >= _PANELS else quants
    if len(chosen) <= _PANELS:
        return chosen
    return [chosen[round(place * (len(chosen) - 1) / (_PANELS - 1))] for place in range(_PANELS)]
