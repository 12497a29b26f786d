"""The reports of sensitivities, of size-targeted recipes and of plans."""

from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict

from quantmill.formats.budgets import Budget
from quantmill.formats.report import Report
from quantmill.formats.settings import FileRounding


class NoiseFloor(TypedDict):
    """The model's divergence from itself: 0, or the stage fails."""

    before: float
    after: float


class PredictionFit(TypedDict):
    """The model that predicts what was not measured."""

    bias_factor: Annotated[float, "R"]
    exponent: Annotated[float, "P"]
    misfit: Annotated[float, "standard deviation of a log"]
    spread: Annotated[float, "standard deviation of a log"]
    probes: int
    cross_validated: Annotated[
        float | None, "root mean square error of log KLD, five folds; null where there are too few probes"
    ]


class Sensitivity(TypedDict):
    """How the sensitivities were measured."""

    corpus: str
    chunks: int
    context: int
    tokens: Annotated[int, "scored"]
    minutes: Annotated[float, "of the config"]
    types: Annotated[list[str], "the candidate types"]
    tensors: int
    choices: Annotated[int, "rows of the table"]
    probes: int
    predicted: int
    seconds: Annotated[float, "of all probes, when the store's units were made"]
    forward_seconds: Annotated[float | None, "of one probe's forward passes, mean; null without probes"]
    overhead: Annotated[
        float | None, "time of the probes, quantizing left out, over that of their forward passes"
    ]
    floor: NoiseFloor
    expanded: Annotated[str | None, "f16 where a quantized source was probed as f16"]
    fit: PredictionFit
    left_out: Annotated[list[str], "choices that need importance values, in words"]
    unused: Annotated[list[str], "tensors that no evaluation uses"]
    warnings: list[str]


ImportedSensitivity = TypedDict(
    "ImportedSensitivity",
    {
        "how": Annotated[str, "imported"],
        "import": Annotated[str, "base name of kld_results.csv"],
        "curve": Annotated[str, "base name"],
        "tensors": int,
        "types": list[str],
        "measured_at": Annotated[list[str], "types"],
        "warnings": list[str],
    },
)
"""Where imported sensitivities are from."""


class MemoryRoom(TypedDict):
    """What a memory budget leaves for the file; bytes."""

    total: int
    reserve: int
    context: Annotated[int, "tokens"]
    cache: Annotated[str, "type of the cache"]
    kv: int
    state: Annotated[int, "recurrent states"]
    compute: int
    file: int


class PoolUse(TypedDict):
    """What a memory is used for; bytes."""

    total: int
    weights: Annotated[int, "all but experts"]
    experts: int
    cache: Annotated[int, "with recurrent states"]
    compute: Annotated[int, "an estimate"]
    reserve: int


class Pools(TypedDict):
    """What is where of a file for two memories."""

    gpu: PoolUse
    cpu: PoolUse
    context: Annotated[int, "tokens"]
    cache_type: str
    layers: Annotated[int, "that have experts"]
    on_cpu: Annotated[list[int], "the layers whose experts are on the CPU"]
    flags: Annotated[list[str], "of llama.cpp's programs"]
    override: Annotated[str, "the value of `-ot` in place of `--n-cpu-moe`; empty: no experts on the CPU"]


class Pace(TypedDict):
    """A floor of the speed at which text is generated; tokens a second."""

    floor: float
    predicted: Annotated[float, "by the measured times of the types"]
    fastest: Annotated[float, "the most that the budget allows"]
    source: Annotated[float | None, "measured of the source; null: its time beside weights is not known"]
    rest: Annotated[float, "seconds of a token beside those of the weights that are chosen or pinned"]
    machine: Annotated[str, "what was measured, in words"]


class Dominated(TypedDict):
    """A type that no budget takes for some tensors: another is no larger and costs no more."""

    role: str
    type: str
    tensors: Annotated[int, "for which it is dominated"]
    of: Annotated[int, "all of the role"]


class AllocatedBudget(Budget):
    """The budget as in the config, in bytes."""

    bytes: Annotated[int, "of the file, at most"]


class Allocation(TypedDict):
    """How a size-targeted recipe was allocated."""

    recipe: str
    budget: AllocatedBudget
    memory: MemoryRoom | None
    pools: NotRequired[Annotated[Pools, "of a budget of two memories"]]
    pace: NotRequired[Annotated[Pace, "of a recipe with a floor `tg`"]]
    file_bytes: int
    metadata_bytes: int
    bpw: float
    least_bytes: Annotated[int, "the smallest file of the candidate types"]
    most_bytes: Annotated[int, "the largest"]
    damage: Annotated[str, "the objective: kld or error"]
    predicted_kld: Annotated[float | None, "nats: the sum over all tensors; null where not known"]
    predicted_se: Annotated[float | None, "its standard error: those of the tensors added in squares"]
    how: Annotated[
        dict[str, int], "tensors whose sensitivity is measured, predicted, imported, or 0 as they are kept"
    ]
    objective: Annotated[float, "the sum that was minimized"]
    bound: Annotated[float, "the optimum is not below it"]
    gap: Annotated[float, "between the two, relative"]
    solver: str
    nodes: int
    engine: str
    types: Annotated[list[str], "the candidate types"]
    groups: int
    choices: int
    harmonized: Annotated[list[list[str]], "roles that share a type"]
    pinned: Annotated[list[str], "tensors"]
    dominated: list[Dominated]
    refit: Annotated[None, "of a second round, which was removed; goes with the next version"]
    rules: Annotated[
        list[str],
        "`^regex$=type`: the whole allocation, each line matching its own tensors alone, in any order",
    ]
    warnings: list[str]


class Feasibility(TypedDict):
    """What a budget can reach."""

    recipe: str
    budget_bytes: int
    least_bytes: int
    most_bytes: int
    warnings: list[str]


class OfType(TypedDict):
    """A type's share of a file."""

    type: str
    tensors: int
    bytes: int
    parameters: int
    roles: list[str]


class OfRole(TypedDict):
    """A role's share of what is quantized."""

    role: str
    tensors: int
    bytes: int
    parameters: int
    bpw: float
    least: Annotated[float, "bits per weight"]
    most: float
    types: Annotated[dict[str, int], "tensors of each type"]


class Bits(TypedDict):
    """The bits of a role in a layer."""

    role: str
    layer: int
    bpw: float
    type: str


class Fallback(TypedDict):
    """A tensor whose rows the type does not fit."""

    name: str
    wanted: str
    type: str


class AllocationSummary(TypedDict):
    """The figures of the allocation that a plan repeats."""

    damage: Annotated[str, "the objective: kld or error"]
    objective: float
    bound: float
    gap: float
    predicted_kld: float | None
    predicted_se: float | None


class Plan(TypedDict):
    """A plan in numbers."""

    recipe: str
    engine: str
    base: str
    file_type: Annotated[int, "llama.cpp's number"]
    imatrix: Annotated[bool, "whether it is used"]
    rounding: NotRequired[FileRounding]
    kept: NotRequired[Annotated[dict[str, int], "tensors without loss of each type, with keep: grid"]]
    mtp: NotRequired[
        Annotated[Literal["none", "only"], "whether the draft head is left out, or is all of the file"]
    ]
    tensors: int
    parameters: Annotated[int, "without per-tensor scales of nvfp4"]
    file_bytes: Annotated[int, "exact"]
    tensor_bytes: int
    metadata_bytes: int
    bpw: Annotated[float, "of the whole file"]
    by_type: Annotated[list[OfType], "most bytes first"]
    by_role: Annotated[list[OfRole], "of what is quantized, most bytes first"]
    bits: list[Bits]
    fallbacks: list[Fallback]
    requantized: Annotated[bool, "whether a quantized source tensor is quantized again"]
    source_types: Annotated[dict[str, int], "tensors of each type of the source"]
    rules: Annotated[int, "number of rules"]
    allocation: Annotated[AllocationSummary | None, "of a size-targeted recipe"]
    warnings: list[str]


SENSITIVITY: Final = Report[Any](
    "sensitivity.json",
    "sensitivity.measure",
    (Sensitivity, ImportedSensitivity),
    "Of sensitivities measured here, or imported by `sensitivity.imported`.",
)
ALLOCATION: Final = Report[Allocation](
    "recipes/<recipe>.json", "budget.allocate", (Allocation,), "Of a size-targeted recipe alone."
)
FEASIBILITY: Final = Report[Feasibility](
    "reach/<recipe>.json",
    "budget.feasibility",
    (Feasibility,),
    "Of a size-targeted recipe whose sensitivity is measured here: sizes of the whole file, from the header "
    "and the candidate types. A recipe that cannot be met is refused instead.",
)
PLAN: Final = Report[Plan]("plans/<recipe>.json", "recipe.plan", (Plan,), "`file_bytes` is exact.")
