"""How weights are rounded, and the text of the second moments, in the user's file."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from quantmill.config import file as config
from quantmill.errors import QuantmillError

BASE: dict[str, Any] = {
    "models": {"m": {"source": {"path": "m.gguf"}}},
    "corpora": {
        name: {"sources": [{"name": name, "path": f"{name}.txt"}]}
        for name in ("calibration", "more", "tuning", "held-out")
    },
    "imatrix": {"corpus": "calibration", "chunks": 9},
    "sensitivity": {"corpus": "tuning"},
    "recipes": ["Q8_0", {"name": "fed", "base": "Q4_K_M", "rounding": "gptq"}],
    "bench": {"kld": {"corpus": "held-out", "chunks": 4}},
}
MORE = {"corpus": "more", "chunks": 3}
BUDGETS = [
    {"name": "fit", "template": "budget", "bpw": 4, "rounding": "gptq"},
    {"name": "other", "template": "budget", "bpw": 5},
]
CHECKPOINT = {"m": {"source": {"checkpoint": "folder"}}}
MFP4 = {"name": "MFP4", "template": "mfp4"}


def parsed(**fields: Any) -> config.Config:
    """The config with other sections."""
    return config.parse(copy.deepcopy(BASE) | fields)


def roundings(read: config.Config) -> dict[str, str]:
    """The rounding of each recipe."""
    return {name: read.rounding_of("m", recipe) for name, recipe in read.recipes_of("m").items()}


def test_a_recipes_own_rounding_goes_before_the_files() -> None:
    assert roundings(parsed()) == {"Q8_0": "nearest", "fed": "gptq"}
    assert roundings(parsed(rounding="gptq")) == {"Q8_0": "gptq", "fed": "gptq"}
    own = {"name": "own", "base": "Q4_0", "rounding": "nearest"}
    assert roundings(parsed(rounding="gptq", recipes=["Q8_0", own])) == {"Q8_0": "gptq", "own": "nearest"}
    assert "rounding" not in parsed().recipes_of("m")["fed"].parameters  # type: ignore[union-attr]


def test_an_exported_checkpoint_is_not_rounded_by_the_files_default() -> None:
    mixed = parsed(rounding="gptq", models=CHECKPOINT, recipes=["Q8_0", MFP4])
    assert roundings(mixed) == {"Q8_0": "gptq", "MFP4": "nearest"}


def text(read: config.Config) -> tuple[str, int] | None:
    """The corpus and the chunks of the second moments."""
    chunks = read.moments_of("m")
    return chunks and (chunks.corpus, chunks.chunks)


def test_the_text_of_the_moments_is_the_imatrixs_unless_named() -> None:
    assert text(parsed()) == ("calibration", 9)
    assert text(parsed(moments=MORE)) == ("more", 3)
    models = {"m": BASE["models"]["m"] | {"moments": None}}
    assert text(parsed(moments=MORE, models=models)) == ("calibration", 9)
    models = {"m": BASE["models"]["m"] | {"moments": MORE}}
    assert text(parsed(models=models)) == ("more", 3)
    assert parsed(imatrix={"file": "i.gguf"}, moments=MORE).moments_of("m") is not None


def test_moments_that_no_recipe_needs_are_accepted_and_unused() -> None:
    unused = parsed(moments=MORE, recipes=["Q8_0"])
    assert unused.moments_of("m") is None
    assert "more" not in unused.corpora_of("m")
    assert "moments" not in [field for field, _, _ in unused.requested_of("m")]


def test_the_corpus_of_the_moments_comes_before_what_is_tuned_and_measured_on() -> None:
    assert list(parsed(moments=MORE).corpora_of("m")) == ["calibration", "more", "tuning", "held-out"]
    longer = parsed(moments={"corpus": "calibration", "chunks": 20})
    assert longer.corpora_of("m")["calibration"].chunks == 20


def test_the_model_is_asked_for_its_moments() -> None:
    assert ("moments", "moments", 512) in parsed(moments=MORE).requested_of("m")
    models = {"m": BASE["models"]["m"] | {"moments": MORE}}
    assert ("moments", "models.m.moments", 512) in parsed(models=models).requested_of("m")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rounding": "up"}, "rounding: input should be 'nearest', 'gptq' or 'gptaq'"),
    (
        {"recipes": [{"name": "a", "base": "Q8_0", "rounding": "up"}]},
        "recipes[0].rounding: input should be 'nearest', 'gptq' or 'gptaq'",
    ),
    (
        {"imatrix": None},
        "recipes[1].rounding: gptq is calibrated on the text of moments or imatrix, and m has no imatrix; "
        "name a corpus under moments",
    ),
    (
        {"imatrix": {"file": "i.gguf"}, "rounding": "gptq"},
        "rounding: gptq is calibrated on the text of moments or imatrix, and the imatrix of m is a file; "
        "name a corpus under moments",
    ),
    ({"moments": {"corpus": "mor", "chunks": 1}}, "moments.corpus: no corpus named mor; did you mean more?"),
    (
        {"moments": {"corpus": "tuning", "chunks": 1}},
        "sensitivity.corpus: tuning is the corpus of moments too; measure on one of its own",
    ),
    (
        {"moments": {"corpus": "held-out", "chunks": 1}},
        "bench.kld.corpus: held-out is the corpus of moments too; measure on one of its own",
    ),
    (
        {"moments": {"corpus": "calibration", "chunks": 1, "context": 256}},
        "moments.context: calibration is cut to chunks of 512 for imatrix; use one context for it",
    ),
    (
        {"models": {"m": {"source": {"path": "m.gguf"}, "moments": {"corpus": "no", "chunks": 1}}}},
        "models.m.moments.corpus: no corpus named no; define it under corpora",
    ),
    (
        {"recipes": BUDGETS},
        "rounding: sensitivities are measured with one rounding, and fit has gptq; give both the same",
    ),
    (
        {"recipes": BUDGETS[::-1]},
        "recipes[1].rounding: sensitivities are measured with one rounding, and other has nearest; "
        "give both the same",
    ),
    (
        {"models": CHECKPOINT, "recipes": ["Q8_0", MFP4 | {"rounding": "gptq"}]},
        "models.m.recipes: MFP4 exports the checkpoint, for which there is no gptq; leave rounding out",
    ),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_refused_with_its_path(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantmillError) as error:
        parsed(**fields)
    assert str(error.value).startswith(f"config.yaml: {message}"), error.value
    assert "\n" not in str(error.value)


def test_imported_sensitivities_say_nothing_of_rounding() -> None:
    both = parsed(sensitivity={"import": "a.csv", "curve": "b.csv"}, recipes=BUDGETS)
    assert roundings(both) == {"fit": "gptq", "other": "nearest"}


def test_recipes_of_one_name_may_be_rounded_in_two_ways() -> None:
    own = {"source": {"path": "o.gguf"}, "recipes": [{"name": "fed", "base": "Q4_K_M"}]}
    both = parsed(models={"m": BASE["models"]["m"], "o": own})
    assert both.rounding_of("o", both.recipes_of("o")["fed"]) == "nearest"
    assert both.moments_of("m") and both.moments_of("o") is None
