"""Names of files as the Hub, llama.cpp and Ollama read them."""

from __future__ import annotations

import pytest

from quantmill import names


@pytest.mark.parametrize(
    ("path", "label"),
    [
        # from gguf.spec.ts of huggingface.js
        ("Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("Codestral-22B-v0.1-F32-Q2_K.gguf", "Q2_K"),
        ("Codestral-22B-v0.1-IQ3_XXS-F32.gguf", "F32"),
        ("Q4_0/Phi-3-mini-4k-instruct-q4.gguf", "Q4_0"),
        ("bf16/model.gguf", "BF16"),
        ("Model-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Model-55IQ2_XXS-34Q2_K-07Q8_0-03F16.gguf", "IQ2_XXS"),
        # ours
        ("tiny-Q6_K_L.gguf", "Q6_K_L"),
        ("tiny-Q4_K_M_CD.gguf", "Q4_K_M_CD"),
        ("tiny-CD-Q4_K_M.gguf", "Q4_K_M"),
        ("tiny-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("tiny-fit-12.92GiB.gguf", None),
        ("tiny-APEX-I-Quality.gguf", None),
        ("tiny-Q4_K_L.gguf", None),
        ("tiny-IQ4_KS.gguf", None),
        ("m-Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0"),
    ],
)
def test_the_label_of_the_hub(path: str, label: str | None) -> None:
    assert names.label(path) == label


FILES = [
    "m-CD-Q4_K_M.gguf",
    "m-Q4_K_M.gguf",
    "m-Q8_0/m-Q8_0-00001-of-00002.gguf",
    "m-Q8_0/m-Q8_0-00002-of-00002.gguf",
    "m-fit-12.92GiB.gguf",
    "mmproj-m-F16.gguf",
    "mtp-m-Q6_K.gguf",
]


@pytest.mark.parametrize(
    ("tag", "path"),
    [
        ("Q4_K_M", "m-CD-Q4_K_M.gguf"),  # the first of the listing, whatever was meant
        ("m-Q4_K_M", "m-Q4_K_M.gguf"),
        ("q8_0", "m-Q8_0/m-Q8_0-00001-of-00002.gguf"),
        ("fit-12.92GiB", "m-fit-12.92GiB.gguf"),
        ("", "m-CD-Q4_K_M.gguf"),
        ("F16", None),
        ("Q6_K", None),
        ("Q4_K", None),
        ("(", None),
    ],
)
def test_what_llama_server_takes(tag: str, path: str | None) -> None:
    assert names.resolved(FILES, tag) == path


def test_tags_that_work() -> None:
    assert names.llama_tag("m-fit-12.92GiB.gguf", "fit-12.92GiB", FILES) == "fit-12.92GiB"
    assert names.llama_tag("m-CD-Q4_K_M.gguf", "CD-Q4_K_M", FILES) == "Q4_K_M"
    assert names.llama_tag("m-Q4_K_M.gguf", "Q4_K_M", FILES) is None
    assert names.ollama_tag("m-fit-12.92GiB.gguf", FILES) == "m-fit-12.92GiB.gguf"
    assert names.ollama_tag("m-Q4_K_M.gguf", FILES) == "m-Q4_K_M.gguf"
    assert names.ollama_tag("m-Q6_K.gguf", ["m-Q6_K.gguf", "m-Q8_0.gguf"]) == "Q6_K"
    assert names.ollama_tag(f"{'m' * 80}.gguf", []) is None


def test_remarks_give_names_that_have_no_remark() -> None:
    recipes = (
        "Q4_K_M",
        "Q4_K_M-v",
        "CD-Q4_K_M",
        "Q8_0",
        "fit-12.92GiB",
        "APEX-I-Quality",
        "mtp-Q6_K",
        "UD-Q4_K_XL",
    )
    files = {recipe: f"m-{recipe}.gguf" for recipe in recipes}
    lines = names.remarks(files, {"fit-12.92GiB": "Q5_K_M"})
    assert lines == [
        "m-Q4_K_M-v.gguf: its label on the Hub and for Ollama, Q4_K_M, is that of m-Q4_K_M.gguf too, and "
        "`llama-server -hf` takes m-CD-Q4_K_M.gguf for it; call the recipe such as Q4_K_M_V",
        "m-CD-Q4_K_M.gguf: its label on the Hub and for Ollama, Q4_K_M, is that of m-Q4_K_M.gguf too, and "
        "`llama-server -hf` takes m-CD-Q4_K_M.gguf for it; call the recipe such as Q4_K_M_CD",
        "m-fit-12.92GiB.gguf: the Hub, Ollama and LM Studio know no quantization by that name; call the "
        "recipe such as fit-12.92GiB-Q5_K_M",
        "m-APEX-I-Quality.gguf: the Hub, Ollama and LM Studio know no quantization by that name; call the "
        "recipe such as Q4_K_M_APEX",
        "m-mtp-Q6_K.gguf: llama.cpp takes no file with `mtp-` in its name for a model; rename it",
    ]
    named = ("Q4_K_M", "Q4_K_M_V", "Q4_K_M_CD", "Q8_0", "fit-12.92GiB-Q5_K_M", "Q4_K_M_APEX")
    better = {recipe: f"m-{recipe}.gguf" for recipe in named}
    assert all(names.llama_tag(path, recipe, list(better.values())) for recipe, path in better.items())
    assert names.remarks(better, {}) == []


def test_presets_by_bits() -> None:
    assert (names.nearest(4.1), names.nearest(8), names.nearest(1)) == ("Q3_K_M", "Q8_0", "IQ1_S")
