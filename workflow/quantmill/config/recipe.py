"""Recipes in config.yaml: rendered from a template, or size-targeted, with types chosen by sensitivity."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from quantmill.config.bench import Probes
from quantmill.config.fields import Count, FilePath, Name, Positive, Size, Strict, Text, size_bytes
from quantmill.config.mtp import DESCRIPTION as _MTP
from quantmill.config.mtp import Mtp, MtpOfBudget
from quantmill.config.refusal import refuse, refuse_twice
from quantmill.devices import RESERVE
from quantmill.spec import canonical
from quantmill.text import GIB

_BUDGETS = ("size", "bpw", "memory")
FLOOR = "tg"
_EXPORTS = ("modelopt", "compressed-tensors")
Form = Literal["regex", "tensor-types", "custom-q", "gguf", "modelopt", "compressed-tensors"]
Rounding = Literal["nearest", "gptq", "gptaq"]
Keep = Literal["grid"]
_ROUNDING = "nearest, gptq or gptaq, how its weights are rounded; default: `rounding` of the config"
_KEEP = (
    "grid: tensors whose values in the source lie on the grid of a type get that type, and keep these values"
)
_RULE = "a rule of the recipe language, such as {role: output, type: q6_K}"


class Scored(Strict):
    """A file that layers are scored by."""

    path: FilePath = Field(description='a JSON file: {"0": 1.5, "1": 0.2, ...}')
    weight: Positive = Field(default=1.0, description="weight of these scores")


class Importance(Strict):
    """How layers are ranked: each source is scaled to 0..1, then their weighted mean is taken."""

    imatrix: Positive | None = Field(default=None, description="weight of the activations' energy")
    sensitivity: Positive | None = Field(default=None, description="weight of the sensitivities")
    scores: Scored | None = Field(default=None, description='a JSON file: {"0": 1.5, "1": 0.2, ...}')

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, given: Any) -> Any:
        """`importance: imatrix` is `{imatrix: 1}`, `{scores: x.json}` is `{scores: {path: x.json}}`."""
        if isinstance(given, str) and given in ("imatrix", "sensitivity"):
            return {given: 1.0}
        if isinstance(given, dict) and isinstance(given.get("scores"), str):
            return {**given, "scores": {"path": given["scores"]}}
        return given

    @model_validator(mode="after")
    def _some(self) -> Importance:
        if not self.weights:
            raise refuse("no_importance", "is empty; name imatrix, sensitivity or scores")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each source."""
        scores = None if self.scores is None else self.scores.weight
        weights = {"imatrix": self.imatrix, "sensitivity": self.sensitivity, "scores": scores}
        return {source: weight for source, weight in weights.items() if weight is not None}


class Split(Strict):
    """How a quantized model is split into several files."""

    max: Size = Field(description="most bytes of tensors in a file; a smaller model is one file")
    header: bool = Field(
        default=False,
        description="the first file has the metadata and no tensor, so that a change of `metadata` replaces "
        "a small file alone; a smaller model is two files then",
    )

    @model_validator(mode="after")
    def _some(self) -> Split:
        if not self.max_bytes:
            raise refuse("empty_split", "must be more than nothing", "max")
        return self

    @property
    def max_bytes(self) -> int:
        """The same in bytes."""
        return size_bytes(self.max)


_SPLIT = "write several files, named as in llama.cpp; null: one file; default: `split` of the config"


class Recipe(Strict):
    """A recipe from a template of `recipes/`."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    size_targeted: ClassVar[bool] = False

    name: Name = Field(description="part of the names of its files")
    template: Name = Field(default="preset", description="a template of recipes/, or one of your own there")
    importance: Importance | None = Field(
        default=None, description="how layers are ranked, for templates that use the rank"
    )
    file: FilePath | None = Field(
        default=None, description="a recipe of another program, for template import"
    )
    form: Form | None = Field(
        default=None, description="the form of that file; for template mfp4 the form of the export"
    )
    scheme: Literal["W4A16", "W4A4"] | None = Field(
        default=None,
        description="for template mfp4 on a checkpoint: W4A16 (the default), weights only, or W4A4, "
        "activations too, calibrated on the corpus of imatrix",
    )
    split: Split | None = Field(default=None, description=_SPLIT)
    rounding: Rounding | None = Field(default=None, description=_ROUNDING)
    acceptance_test: bool = Field(
        default=True,
        description="of rounding gptq and gptaq: recommend it only if it is on no domain significantly worse "
        "than the same types rounded to nearest",
    )
    keep: Keep | None = Field(default=None, description=_KEEP)
    mtp: Mtp | None = Field(default=None, description=f"{_MTP}; only: a draft file with the head alone")

    @model_validator(mode="after")
    def _file_and_form(self) -> Recipe:
        if self.template == "mfp4":
            if self.form not in (None, *_EXPORTS, "gguf"):
                text = f"mfp4 makes no {self.form}; it is one of {', '.join(_EXPORTS)} and gguf"
                raise refuse("form_of_mfp4", text, "form")
            if self.file is not None:
                raise refuse("file_of_mfp4", "mfp4 imports no file; leave it out", "file")
            if self.scheme is not None and self.form == "gguf":
                text = "of a GGUF llama.cpp decides what activations become; leave it out"
                raise refuse("scheme_of_gguf", text, "scheme")
        elif self.scheme is not None:
            raise refuse(
                "scheme_of_mfp4", f"{self.scheme} is a scheme of template mfp4; leave it out", "scheme"
            )
        elif self.form in _EXPORTS:
            raise refuse("form_of_import", f"{self.form} is a form of template mfp4; choose another", "form")
        elif (self.file is None) != (self.form is None):
            missing = "file" if self.file is None else "form"
            raise refuse("file_and_form", "is missing; file and form go together", missing)
        return self

    @model_validator(mode="after")
    def _draft(self) -> Recipe:
        if self.mtp == "only" and self.rounding not in (None, "nearest"):
            text = f"{self.rounding}: no second moments are measured of a draft head; leave rounding out"
            raise refuse("rounded_draft", text, "rounding")
        return self

    @model_validator(mode="after")
    def _plain(self) -> Recipe:
        for field, value in self.parameters.items():
            try:
                canonical(value)
            except (TypeError, ValueError):
                raise refuse("plain", f"{value} is no plain value; put it in quotes", field) from None
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The template's parameters."""
        return dict(self.model_extra or {})

    @property
    def files(self) -> list[str]:
        """The user's own files that it is made from."""
        scores = self.importance.scores if self.importance else None
        return [path for path in (self.file, scores.path if scores else None) if path]

    @property
    def weights(self) -> dict[str, float]:
        """The weights of what layers are ranked by; none where they are not."""
        return self.importance.weights if self.importance else {}


class ImportedSensitivity(Strict):
    """Sensitivities in the published form of GGUF-Tool-Suite: two tables of comma-separated values."""

    imported: ClassVar[bool] = True

    results: FilePath = Field(
        alias="import", description="kld_results.csv: one row per type, one column per tensor"
    )
    curve: FilePath = Field(description="kld_results.csv of group0: one row per type, with all tensors at it")


def _kind_of_sensitivity(given: Any) -> str:
    imported = isinstance(given, ImportedSensitivity) or (isinstance(given, dict) and "import" in given)
    return "<import>" if imported else "<probes>"


Sensitivity = Annotated[
    Annotated[Probes, Tag("<probes>")] | Annotated[ImportedSensitivity, Tag("<import>")],
    Discriminator(_kind_of_sensitivity),
]


Cache = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]


class MemoryBudget(Strict):
    """A device's memory. The file gets what the context and the computation leave."""

    total: Size = Field(description="the device's memory")
    context: Count = Field(description="tokens of the context")
    cache: Cache = Field(default="f16", description="type of the KV cache")
    reserve: Size = Field(
        default=f"{RESERVE // GIB} GiB", description="memory that stays free for other uses"
    )


class PoolsBudget(Strict):
    """A GPU's memory and the CPU's beside it, for a mixture of experts: those that the GPU has no room for
    are on the CPU.
    """

    gpu: Size = Field(description="the GPU's memory")
    cpu: Size = Field(description="the memory beside it")
    context: Count = Field(description="tokens of the context")
    cache: Cache = Field(default="f16", description="type of the KV cache")
    reserve: Size = Field(
        default=f"{RESERVE // GIB} GiB", description="of each of them, what stays free for other uses"
    )


def _kind_of_memory(given: Any) -> str:
    two = isinstance(given, PoolsBudget) or (isinstance(given, dict) and {"gpu", "cpu"} & given.keys())
    return "<two>" if two else "<one>"


class BudgetRecipe(Strict):
    """A size-targeted recipe: the types that cost the least quality within a size, a bpw, or a memory."""

    size_targeted: ClassVar[bool] = True

    name: Name = Field(description="part of the names of its files")
    template: Literal["budget"] = Field(description="budget: the types are computed, not rendered")
    size: Size | None = Field(default=None, description="of the whole file, at most")
    bpw: Positive | None = Field(default=None, description="bits per weight of the whole file, at most")
    memory: (
        Annotated[
            Annotated[MemoryBudget, Tag("<one>")] | Annotated[PoolsBudget, Tag("<two>")],
            Discriminator(_kind_of_memory),
        ]
        | None
    ) = Field(default=None, description="of the device that the file runs on, or of a GPU and a CPU")
    types: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, description="the candidate types; default: all types of the sensitivities"
    )
    harmonize: list[list[Text]] | None = Field(
        default=None, description="roles that share a type in a layer; default: gate and up"
    )
    pin: list[dict[str, Any]] = Field(
        default=[], description=f"{_RULE}; these come first, and their tensors are not chosen for"
    )
    at_least: dict[str, Text | Positive] = Field(
        default={},
        description="the smallest type of a role, by bits per weight; `tg`: tokens a second that a text is "
        "generated with on this machine, from an empty context",
    )
    at_most: dict[str, Text] = Field(default={}, description="the largest type of a role")
    engine: Literal["mainline", "ik"] = Field(
        default="mainline", description="llama.cpp, or ik_llama.cpp, whose types only it can load"
    )
    imatrix: Literal["required", "optional", "none"] = Field(
        default="optional", description="whether the file is quantized with the importance matrix"
    )
    objective: Literal["kld", "error"] = Field(
        default="kld", description="what is minimized: the divergence, or the error of quantizing alone"
    )
    acceptance_test: bool = Field(
        default=True,
        description="recommend it only if it significantly beats the best other file within its budget; of "
        "rounding gptq and gptaq as in any recipe",
    )
    split: Split | None = Field(default=None, description=_SPLIT)
    rounding: Rounding | None = Field(default=None, description=_ROUNDING)
    keep: Keep | None = Field(default=None, description=f"{_KEEP}, at no loss where the types are chosen")
    mtp: MtpOfBudget | None = Field(default=None, description=_MTP)

    @model_validator(mode="after")
    def _consistent(self) -> BudgetRecipe:
        given = [kind for kind in _BUDGETS if getattr(self, kind) is not None]
        if not given:
            raise refuse("no_budget", "no budget; give it one of size, bpw and memory")
        if len(given) > 1:
            raise refuse("two_budgets", f"{given[0]} is given too; keep one of them", given[1])
        refuse_twice("types", self.types or [])
        for role, least in self.at_least.items():
            if (role == FLOOR) != isinstance(least, float):
                text = "is tokens a second, such as 20" if role == FLOOR else "is a type, such as q4_K"
                raise refuse("kind_of_floor", text, f"at_least.{role}")
        if self.floor is not None and self.engine != "mainline":
            text = f"the speed of types is measured in llama.cpp, not in {self.engine}; leave it out"
            raise refuse("floor_of_engine", text, f"at_least.{FLOOR}")
        seen: set[str] = set()
        for number, roles in enumerate(self.harmonize or []):
            if len(set(roles) - seen) < max(2, len(roles)):
                text = "each entry has two roles or more, and a role stands in one entry"
                raise refuse("groups", text, f"harmonize[{number}]")
            seen |= set(roles)
        return self

    @property
    def budget(self) -> dict[str, Any]:
        """The budget in bytes: `{"size": n}`, `{"bpw": x}`, `{"memory": {...}}` or `{"pools": {...}}`."""
        if self.size is not None:
            return {"size": size_bytes(self.size)}
        if self.memory is None:
            return {"bpw": self.bpw}
        two = isinstance(self.memory, PoolsBudget)
        given = self.memory.model_dump()
        sizes = {key: size_bytes(given[key]) for key in (("gpu", "cpu") if two else ("total",))}
        sizes["reserve"] = size_bytes(self.memory.reserve)
        return {"pools" if two else "memory": given | sizes}

    @property
    def floor(self) -> float | None:
        """Tokens a second that a text is generated with, at least."""
        floor = self.at_least.get(FLOOR)
        return floor if isinstance(floor, float) else None

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides its allocation."""
        fields = ("types", "harmonize", "pin", "at_least", "at_most", "engine")
        named = {field: getattr(self, field) for field in fields}
        # Names of the spec that the config has no more: others would make finished files stale.
        old_names: dict[str, Any] = {"damage": self.objective, "refit": []}
        recipe = {"recipe": self.name, "budget": self.budget, "use_imatrix": self.imatrix}
        named["at_least"] = {role: kind for role, kind in self.at_least.items() if role != FLOOR}
        floor = {} if self.floor is None else {"floor": self.floor}
        return recipe | named | floor | old_names


def _kind_of_recipe(given: Any) -> str:
    if isinstance(given, BudgetRecipe) or (isinstance(given, dict) and given.get("template") == "budget"):
        return "<budget>"
    return "<preset>" if isinstance(given, str) else "<recipe>"


def _distinct_recipes(recipes: list[str | Recipe | BudgetRecipe]) -> list[str | Recipe | BudgetRecipe]:
    names = [recipe if isinstance(recipe, str) else recipe.name for recipe in recipes]
    refuse_twice("", names)
    if all(isinstance(recipe, Recipe) and recipe.mtp == "only" for recipe in recipes):
        text = "all make a draft file, which only works beside its model; add a recipe of the model itself"
        raise refuse("only_drafts", text)
    for reserved in ("source", "source-ik"):  # rows of the bench
        if reserved in names:
            text = f"the name `{reserved}` is the source model's own; choose another"
            raise refuse("reserved", text, f"[{names.index(reserved)}]")
    return recipes


Recipes = Annotated[
    list[
        Annotated[
            Annotated[Name, Tag("<preset>")]
            | Annotated[BudgetRecipe, Tag("<budget>")]
            | Annotated[Recipe, Tag("<recipe>")],
            Discriminator(_kind_of_recipe),
        ]
    ],
    Field(min_length=1),
    AfterValidator(_distinct_recipes),
]


@cache
def preset(name: str) -> Recipe:
    """The recipe that a preset's name alone is; made once, for every spec of every model asks for it."""
    return Recipe.model_validate({"name": name, "base": name})
