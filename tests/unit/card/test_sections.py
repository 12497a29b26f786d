"""What the sections of the card are built from: fallbacks, reasons, warnings, machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantmill.card.sections import contents, files, recipes, speed, summary
from quantmill.card.view import view
from quantmill.card.write import card
from quantmill.errors import QuantmillError
from quantmill.files import read_json, write_json, write_text
from quantmill.formats.proof import VERIFIED, Verified
from quantmill.judge.results import read
from quantmill.spec import file_sha256
from reports import complete

Tree = tuple[Path, dict[str, Any]]


LEFT_OUT = "prose: 3 of 1200 rows of prose.parquet are left out: 3 not UTF-8, such as row 9"


def edit(path: Path, **fields: Any) -> None:
    write_json(path, read_json(path) | fields)


def test_fallbacks_are_grouped_with_their_widths(tree: Tree) -> None:
    rows = contents.fallbacks(read(*tree))
    assert [(f["name"], f["requested"], f["type"], f["tensors"], f["roles"], f["widths"]) for f in rows] == [
        ("Q4_K_L", "q4_K", "q5_0", 4, ["attn_k"], [512]),
        ("Q4_K_M", "q4_K", "q5_0", 4, ["attn_k"], [512]),
    ]


def test_reasons_count_every_tensor_once(tree: Tree) -> None:
    for quant in read(*tree).quants:
        groups = recipes.by_reason(quant)
        assert sum(group["tensors"] for group in groups) == quant.plan["tensors"]
        assert sum(group["bytes"] for group in groups) == quant.plan["tensor_bytes"]


def test_every_stages_warnings_are_shown_once(tree: Tree) -> None:
    folder, config = tree
    edit(folder / "imatrix.json", warnings=["3 experts below the floor"])
    for name in ("Q8_0", "Q6_K"):
        edit(folder / "plans" / f"{name}.json", warnings=["of two files"])
    assert summary.warnings(read(folder, config)) == [
        (LEFT_OUT, ["corpus calibration", "corpus held-out"]),
        ("3 experts below the floor", ["imatrix"]),
        ("of two files", ["Q8_0", "Q6_K"]),
    ]


def test_values_on_a_grid_are_said_with_the_files_that_keep_them(tree: Tree) -> None:
    folder, config = tree
    assert "Values on a grid" not in card(view(read(folder, config), config))
    edit(folder / "model.json", grids={"q4_0": 16})
    written = card(view(read(folder, config), config))
    assert "| Values on a grid | 16 tensors on that of q4_0: no file keeps them |" in written
    assert "quantized before, and stored as floats |" in written
    edit(folder / "plans" / "Q8_0.json", kept={"q4_0": 14, "mxfp4": 1})
    written = card(view(read(folder, config), config))
    assert "| Values on a grid | 16 tensors on that of q4_0: kept without loss in `Q8_0` (15) |" in written


def test_speeds_of_two_settings_are_told_apart(tree: Tree) -> None:
    folder, config = tree
    assert len(speed.machines(read(folder, config))) == 1
    edit(folder / "bench" / "Q8_0" / "speed.json", threads=4)
    assert [names for _, names in speed.machines(read(folder, config))][1] == ["Q8_0"]
    built = speed.build(view(read(folder, config), config))
    assert built is not None and built["source_mark"] == 1
    # Each has the number of its setting; a ratio to a rate of another says nothing.
    assert {name: (mark, comparable) for name, _, mark, comparable in built["rows"]}["Q8_0"] == (2, False)
    assert "| `Q8_0` (2) |" in card(view(read(folder, config), config))


def test_verified_is_said_of_the_lock_that_is_there_and_where_nothing_differs(tree: Tree) -> None:
    folder, config = tree
    write_text(folder / "lock.json", "{}")
    file = {"engine": "e" * 64, "tensors": 9, "compared": 9}

    def said(*given: dict[str, Any], lock: str = "", **settings: Any) -> str:
        report = {"lock": lock or file_sha256(folder / "lock.json"), "mode": "all"} | settings
        VERIFIED.write(folder / "verify.json", complete(Verified, report | {"files": list(given)}))
        asked: Any = config | {"verified": True}
        return files.verified(view(read(folder, asked), asked))

    by = "by the engine `eeeeeeeeeeee`."
    assert said(file, file) == f"2 of 2 files were made again from `lock.json`, bit for bit, {by}"
    sample = said(file | {"compared": 4}, mode="sample")
    what = "A sample, 4 of 9 tensors of 1 file, was made again from `lock.json`"
    assert sample == f"{what}, bit for bit, {by}"
    other = said(file, file | {"engine": "f" * 64})
    assert other.endswith("by the engines `eeeeeeeeeeee` and `ffffffffffff`.")
    assert said(file, lock="another") == ""
    assert said(file, file | {"refused": "the store has lost it"}) == ""
    assert said(file, file | {"differences": [{"tensor": "x", "type": "q4_K", "cause": "y"}]}) == ""
    assert files.verified(view(read(folder, config), config)) == ""


def test_the_summary_tells_what_the_checks_found(tree: Tree) -> None:
    folder, config = tree
    text = card(view(read(folder, config), config))
    assert (
        "| Checked | each file was loaded by its engine and answers a question by its chat template, the "
        "data of all their tensors are sound, texts come back from their tokens |" in text
    )
    assert "| Chat template | takes a system message; leaves tools out |" in text
    assert "failed its check" not in text
    for name in config["recipes"]:
        template = {"system": "joined", "tools": "refuses"}
        edit(folder / "checks" / f"{name}.json", tokenizer="lossless in ASCII", template=template)
    text = card(view(read(folder, config), config))
    assert "come back" not in text
    assert "takes no system message (engines join it to the first question); refuses tools |" in text
    edit(folder / "checks" / "Q8_0.json", tokenizer="lossy")
    text = card(view(read(folder, config), config))
    assert ", **but an English text does not come back from its tokens** |" in text


def test_a_file_that_failed_its_check_is_named_and_not_recommended(tree: Tree) -> None:
    folder, config = tree
    best = view(read(folder, config), config).pick.name
    edit(folder / "checks" / f"{best}.json", failures=["2 of the 9 blocks of a.weight are NaN"])
    results = read(folder, config)
    assert view(results, config).pick.name != best
    text = card(view(results, config))
    assert f"> **`{best}` failed its check:** 2 of the 9 blocks of a.weight are NaN." in text
    assert "| Checked | 1 of 6 failed |" in text


def test_a_check_of_another_file_is_refused(tree: Tree) -> None:
    folder, config = tree
    edit(folder / "checks" / "Q8_0.json", sha256="0")
    with pytest.raises(QuantmillError, match=r"Q8_0\.json: is of another file; delete it"):
        read(folder, config)


def test_commands_have_tags_that_give_the_file(tree: Tree) -> None:
    folder, config = tree
    shown = view(read(folder, config), config | {"repo": "me/tiny-GGUF"})
    text = card(shown)
    assert (
        f"llama-server -hf me/tiny-GGUF:{shown.pick.name} -c {shown.context}    # downloads it by itself"
        in text
    )
    assert f"ollama run hf.co/me/tiny-GGUF:{shown.pick.name}    # without the Modelfile" in text
    assert f"hf download me/tiny-GGUF modelfiles/Modelfile.{shown.pick.name} --local-dir ." in text
    assert " -hf " not in card(view(read(folder, config), config)) and "hf.co/" not in card(
        view(read(folder, config), config)
    )
    # Another file comes before it by the same tag: only its whole name is its own.
    edit(folder / "gguf" / "tiny-Q8_0.json", file=f"a-{shown.pick.name}.gguf")
    text = card(view(read(folder, config), config | {"repo": "me/tiny-GGUF"}))
    assert " -hf " not in text
    assert f"ollama run hf.co/me/tiny-GGUF:tiny-{shown.pick.name}.gguf    # without" in text


def test_recommended_sampling_is_on_the_card(tree: Tree) -> None:
    folder, config = tree
    text = card(view(read(folder, config), config))
    assert "Recommended sampling, which llama.cpp takes from the file: temperature 0.7, top-k 20." in text
    assert "It has the recommended sampling." in text
    for name in config["recipes"]:
        edit(folder / "checks" / f"{name}.json", sampling={})
    assert "ecommended sampling" not in card(view(read(folder, config), config))
