"""Notes and the answer to "which file", from made-up results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantmill.files import read_json, write_json
from quantmill.judge import advice, frontier
from quantmill.judge.results import Results, read

Tree = tuple[Path, dict[str, Any]]


def edit(path: Path, **fields: Any) -> None:
    write_json(path, read_json(path) | fields)


def notes(results: Results) -> dict[str, str]:
    """The note of each file, and of the source."""
    notes = {quant.name: advice.note(quant, results) for quant in results.quants}
    return notes | {"source": advice.source_note(results)}


def test_each_note_says_what_was_measured(tree: Tree) -> None:
    note_of = notes(read(*tree))
    assert note_of["Q8_0"] == "lowest perplexity"
    assert note_of["Q6_K"] == "smallest not significantly worse than the source"
    assert note_of["Q4_K_L"] == "skip: `Q5_K_M` is smaller and significantly better"
    assert note_of["Q4_K_M"] == "16 % smaller than `Q5_K_M` for +1.71 % perplexity"
    assert note_of["IQ2_XXS"] == "collapsed: about 2.5 times the source's perplexity"


def test_the_answer_names_the_smallest_good_one_the_near_one_and_the_smallest(tree: Tree) -> None:
    first, second, third = advice.choice(read(*tree))
    assert first == (
        "**Take `Q6_K` (11.6 MiB):** the smallest file not significantly worse than the source "
        "(+0.08 ± 0.06 % perplexity)."
    )
    assert second.startswith("**For less memory, `Q5_K_M` (10.3 MiB):**")
    assert third == "**The smallest usable file is `Q4_K_M` (8.6 MiB)** (+2.53 ± 0.19 % perplexity)."


def test_all_worse_than_the_source_the_closest_is_named(make_tree: Callable[..., Tree]) -> None:
    results = read(*make_tree(recipes={"Q4_K_M": ("q4_K", "q6_K", "q6_K", 0.05, 0.01)}))
    sentence = "**`Q4_K_M` (8.6 MiB) is closest to the source** (+5.13 ± 0.17 % perplexity)."
    assert advice.choice(results) == [sentence]
    assert notes(results)["Q4_K_M"] == "lowest perplexity"


def test_by_divergence_the_answer_is_the_smallest_near_one_and_the_closest(kld_tree: Tree) -> None:
    results = read(*kld_tree)
    first, second, third = advice.choice(results)
    assert first == (
        "**Take `Q5_K_M` (10.3 MiB):** the smallest file with a KL divergence significantly (95 %) below "
        "0.02 (KL divergence 0.01500 ± 0.00030; both rank the same token first in 98.5 % of all cases)."
    )
    assert second.startswith(
        "**If you have more memory, `Q8_0` (14.4 MiB):** the closest to the source (KL div"
    )
    assert third.startswith("**The smallest usable file is `Q4_K_M` (8.6 MiB)** (KL divergence")
    assert advice.recommended(results) is advice.smallest_same(results)
    assert frontier.best(results) == {"Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"}


def test_by_divergence_each_note_says_what_was_measured(kld_tree: Tree) -> None:
    note_of = notes(read(*kld_tree))
    assert note_of["Q8_0"] == "closest to the source"
    assert note_of["Q6_K"] == "19 % smaller than `Q8_0` for 0.00090 more KL divergence"
    assert note_of["Q4_K_L"] == "skip: `Q5_K_M` is smaller and significantly better"
    assert note_of["Q5_K_M"] == "smallest with a KL divergence below 0.02"
    assert (
        note_of["IQ2_XXS"]
        == "collapsed: KL divergence 1.353, comparable to about 3.9 times the source's perplexity"
    )


def test_of_two_files_of_one_size_the_worse_is_skipped(make_tree: Callable[..., Tree]) -> None:
    recipes = {"fit": ("q5_0", "q6_K", "q6_K", 0.01, 0.001), "Q5_K_M": ("q5_K", "q6_K", "q6_K", 0.05, 0.001)}
    folder, config = make_tree(recipes=recipes)
    note_of = notes(read(folder, config | {"kld": True}))
    assert note_of["Q5_K_M"] == "skip: `fit` is of the same size and significantly better"
    assert "fit" not in note_of["fit"]


def test_by_divergence_with_no_file_near_the_closest_is_named(make_tree: Callable[..., Tree]) -> None:
    folder, config = make_tree(recipes={"Q4_K_M": ("q4_K", "q6_K", "q6_K", 0.05, 0.01)})
    (sentence,) = advice.choice(read(folder, config | {"kld": True}))
    assert sentence.startswith(
        "**`Q4_K_M` (8.6 MiB) is closest to the source** (KL divergence 0.07800 ± 0.00156"
    )


def test_divergences_of_too_few_chunks_give_no_advice(make_tree: Callable[..., Tree]) -> None:
    folder, config = make_tree(n=3)
    sentence = advice.choice(read(folder, config | {"kld": True}))
    assert sentence == ["KL divergence was measured on too few chunks to tell the files apart."]


def test_an_absurd_source_is_seen_by_its_divergence_alone(kld_tree: Tree) -> None:
    folder, config = kld_tree
    edit(folder / "bench" / "source" / "kld.json", perplexity={"value": 54321.0, "error": 1.0})
    (sentence,) = advice.choice(read(folder, config | {"perplexity": False}))
    assert "54,321" in sentence


def test_a_file_no_smaller_than_its_quantized_source_is_said_to_be(tree: Tree) -> None:
    folder, config = tree
    edit(folder / "model.json", bytes=11_000_000, quantized=True, quantized_types=["q4_1"])
    results = read(folder, config)
    assert notes(results)["Q8_0"] == "not smaller than the source, and not better"
    assert notes(results)["source"].endswith("itself quantized (q4_1)")
    first, *_, last = advice.choice(results)
    assert first == (
        "**Of the files smaller than the source, `Q5_K_M` (10.3 MiB) is closest to the source** "
        "(+0.80 ± 0.10 % perplexity)."
    )
    assert last == "3 files are not smaller than the source: use the source instead if you can."
    assert frontier.best(results) == {"Q5_K_M", "Q4_K_M"}


def test_where_no_file_is_smaller_than_the_source_that_is_the_advice(tree: Tree) -> None:
    folder, config = tree
    edit(folder / "model.json", bytes=1_000_000)
    first, second, *_ = advice.choice(read(folder, config))
    assert first.startswith("**Take `Q6_K`")
    assert second == "It is not smaller than the source: use the source instead if you can."


def test_two_files_of_the_same_tensors_are_said_to_be(make_tree: Callable[..., Tree]) -> None:
    same = ("q4_K", "q6_K", "q6_K", 0.05, 0.01)
    assert notes(read(*make_tree(recipes={"A": same, "B": same})))["B"] == "duplicate of `A`"


def test_the_same_types_without_the_imatrix_are_another_file(make_tree: Callable[..., Tree]) -> None:
    same = ("q4_K", "q6_K", "q6_K", 0.05, 0.01)
    folder, config = make_tree(recipes={"A": same, "B": same})
    edit(folder / "plans" / "B.json", imatrix=False)
    results = read(folder, config | {"kld": True})
    assert "duplicate" not in notes(results)["B"]
    assert not [v for v in frontier.withheld(results, "dominated") if v.reason == "identical"]


def test_too_few_chunks_give_no_advice(make_tree: Callable[..., Tree]) -> None:
    results = read(*make_tree(n=3))
    assert advice.choice(results) == ["Perplexity was measured on too few chunks to tell the files apart."]
    assert notes(results)["Q4_K_L"] == ""


def test_an_absurd_source_makes_the_run_invalid(tree: Tree) -> None:
    folder, config = tree
    edit(folder / "bench" / "source" / "perplexity.json", perplexity=54321.0)
    results = read(folder, config)
    (sentence,) = advice.choice(results)
    assert "No advice can be given" in sentence
    assert "54,321" in sentence
    assert notes(results)["Q4_K_L"] == ""
