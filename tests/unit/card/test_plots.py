"""The pictures: the same bytes twice, names that do not overlap, any number of files."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from quantmill.card import maps, mix, plots
from quantmill.files import read_json, write_json
from quantmill.judge.results import read

Tree = tuple[Path, dict[str, Any]]

MANY = {f"Q{place}": ("q4_K", "q8_0", "q6_K", 0.002 * place**2, 0.01) for place in range(30)}


def test_the_same_results_give_the_same_bytes(kld_tree: Tree, tmp_path: Path) -> None:
    results = read(*kld_tree)
    for draw in (plots.draw_size_loss, plots.draw_size_perplexity, plots.draw_sizes, maps.draw_bits):
        for name in ("a.svg", "b.svg"):
            plots.save(functools.partial(draw, results), tmp_path / name)
        first = (tmp_path / "a.svg").read_bytes()
        assert first == (tmp_path / "b.svg").read_bytes()
        assert (tmp_path / "a-dark.svg").read_bytes() == (tmp_path / "b-dark.svg").read_bytes() != first
        assert ElementTree.fromstring(first).tag == "{http://www.w3.org/2000/svg}svg"
        assert b"<dc:date>" not in first


@pytest.mark.parametrize("recipes", [None, {"Q4_K_M": ("q4_K", "q6_K", "q6_K", 0.02, 0.01)}, MANY])
@pytest.mark.parametrize("draw", [plots.draw_size_perplexity, plots.draw_size_loss])
def test_names_lie_within_the_frame_and_not_on_each_other(
    make_tree: Callable[..., Tree], recipes: Any, draw: Any
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    folder, config = make_tree(recipes=recipes)
    results = read(folder, config | {"kld": draw is plots.draw_size_loss})
    figure = draw(results)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    boxes = {label.get_text(): label.get_window_extent() for label in axes.texts}
    source = f"source, {results.facts['bytes'] / 2**20:.1f} MiB"
    assert (source in boxes) == (draw is plots.draw_size_perplexity)
    assert len(boxes.keys() - {source}) >= min(
        6, len(results.quants)
    )  # crowded points may go without a name, few do
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        assert not a.overlaps(b), (one, other)
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes.values())


def test_points_stand_at_their_size_and_change(tree: Tree) -> None:
    results = read(*tree)
    drawn = [
        line.get_xydata()[0]
        for line in plots.draw_size_perplexity(results).axes[0].lines
        if len(line.get_xydata()) == 1
    ]
    expected = [(q.bytes / 2**20, q.difference.percent) for q in results.quants if q.difference]
    expected.append((results.facts["bytes"] / 2**20, 0.0))
    assert [tuple(point) for point in drawn] == [pytest.approx(point) for point in expected]


def test_divergences_stand_at_their_size_on_a_logarithmic_axis(kld_tree: Tree) -> None:
    results = read(*kld_tree)
    axes = plots.draw_size_loss(results).axes[0]
    assert axes.get_yscale() == "log"
    drawn = [tuple(line.get_xydata()[0]) for line in axes.lines if len(line.get_xydata()) == 1]
    expected = [
        (quant.bytes / 2**20, kld["kld"]["mean"])
        for quant in results.quants
        if (kld := quant.measured["kld"])
    ]
    assert drawn == [pytest.approx(point) for point in expected]


def test_where_files_are_no_smaller_than_the_source_a_line_stands_at_its_size(kld_tree: Tree) -> None:
    folder, config = kld_tree
    assert "source" not in " ".join(text.get_text() for text in drawn(folder, config).texts)
    sizes = sorted(quant.bytes for quant in read(folder, config).quants)
    write_json(folder / "model.json", read_json(folder / "model.json") | {"bytes": sizes[2] - 1})
    axes = drawn(folder, config)
    (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert line.get_xdata()[0] == (sizes[2] - 1) / 2**20
    assert f"source, {(sizes[2] - 1) / 2**20:.1f} MiB" in [text.get_text() for text in axes.texts]
    write_json(folder / "model.json", read_json(folder / "model.json") | {"bytes": sizes[0] // 2})
    assert drawn(folder, config).get_xlim()[0] < sizes[0] / 2 / 2**20


def drawn(folder: Path, config: dict[str, Any]) -> Any:
    """The axes of size against divergence."""
    return plots.draw_size_loss(read(folder, config)).axes[0]


def test_at_most_six_panels_from_large_to_small(make_tree: Callable[..., Tree]) -> None:
    results = read(*make_tree(recipes=MANY))
    chosen = mix.representative(results.quants)
    assert len(chosen) == 6
    assert (chosen[0], chosen[-1]) == (results.quants[0], results.quants[-1])
    titles = [axes.get_title(loc="left") for axes in maps.draw_bits(results).axes]
    assert [title.split(",")[0] for title in titles if title] == [quant.name for quant in chosen]


def test_a_panel_names_the_types_of_its_roles(make_tree: Callable[..., Tree]) -> None:
    results = read(*make_tree(recipes={"Q4_K_M": ("q4_K", "q6_K", "q8_0", 0.02, 0.01)}))
    panel = maps.draw_bits(results).axes[0]
    rows = [label.get_text() for label in panel.get_yticklabels()]
    assert rows == [
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
        "token_embd",
    ]
    named = {rows[int(label.get_position()[1])]: label.get_text() for label in panel.texts}
    assert named["attn_q"] == "q4_K"
    assert named["attn_v"] == "q8_0"
    assert named["token_embd"] == "q6_K"
