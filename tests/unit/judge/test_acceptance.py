"""Size-targeted files on the card: baseline, acceptance test, predicted beside measured; the heat map."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantmill.card import maps, view, write
from quantmill.files import read_json, write_json, write_table
from quantmill.formats.allocation import Allocation, ImportedSensitivity, Sensitivity
from quantmill.formats.sensitivity import COLUMNS, read_sensitivity
from quantmill.judge import advice, frontier, memory
from quantmill.judge.results import Results, read
from quantmill.judge.sensitivity import at_one_type
from reports import complete

# name: types, then what the perplexity and the divergence come from, as in conftest.RECIPES
RECIPES: dict[str, tuple[str, str, str, float, float]] = {
    "Q6_K": ("q6_K", "q6_K", "q6_K", 0.001, 0.002),
    "Q4_K_M": ("q4_K", "q6_K", "q6_K", 0.020, 0.010),
    "Q3_K_M": ("q3_K", "q5_K", "q4_K", 0.060, 0.020),
    "fit": ("q4_K", "q6_K", "q8_0", 0.004, 0.005),
    "poor": ("q4_K", "q6_K", "q5_K", 0.061, 0.010),
    "small": ("iq2_xxs", "iq2_xxs", "iq2_xxs", 0.300, 0.010),
}
TARGETED = ("fit", "poor", "small")


def edit(path: Path, **fields: Any) -> None:
    """Change fields of a JSON file."""
    write_json(path, read_json(path) | fields)


def report(size: int, **fields: Any) -> dict[str, Any]:
    """The report of an allocation."""
    return {
        "recipe": "fit",
        "budget": {"size": size + 999, "bytes": size + 999},
        "memory": None,
        "predicted_kld": 0.006,
        "predicted_se": 0.0002,
        "objective": 0.006,
        "bound": 0.00599,
        "gap": 1e-9,
        "damage": "kld",
        "solver": "HiGHS 1",
        "groups": 5,
        "choices": 40,
        "types": ["q4_K", "q6_K"],
        "least_bytes": size // 2,
        "most_bytes": size * 2,
        "pinned": [],
        "harmonized": [["ffn_gate", "ffn_up"]],
        "how": {"measured": 20, "predicted": 9},
        "warnings": ["a warning of the allocator"],
        "dominated": [
            {"role": "attn_q", "type": "q5_0", "tensors": 4, "of": 4},
            {"role": "attn_v", "type": "q3_K", "tensors": 1, "of": 4},
        ],
        "rules": [r"^blk\.(0|1)\.attn_q\.weight$=q4_K", r"^output\.weight$=q6_K"],
        **fields,
    }


PROBED: dict[str, Any] = {
    "corpus": "tuning",
    "chunks": 6,
    "context": 256,
    "tokens": 762,
    "probes": 16,
    "choices": 17,
    "predicted": 1,
    "seconds": 75.0,
    "floor": {"before": 0.0, "after": 0.0},
    "warnings": ["a warning of the probes"],
}
IMPORT: dict[str, Any] = {
    "how": "imported",
    "import": "kld_results.csv",
    "curve": "group0.csv",
    "measured_at": ["iq1_kt"],
    "warnings": ["iq1_kt: no column for 1 tensor (output.weight): the median of the role is taken"],
}


@pytest.fixture
def targeted(make_tree: Any) -> tuple[Path, dict[str, Any]]:
    """A tree with three presets and three size-targeted files."""
    folder, config = make_tree(recipes=RECIPES)
    config |= {"kld": True, "sensitivity": True, "fits": {name: {"gate": True} for name in TARGETED}}
    for name in TARGETED:
        size = read_json(folder / "gguf" / f"tiny-{name}.json")["bytes"]
        write_json(folder / "recipes" / f"{name}.json", complete(Allocation, report(size)))
    rows = [
        [
            f"blk.{layer}.{role}.weight",
            role,
            layer,
            "512x512",
            kind,
            int(512 * 64 * bits),
            "",
            "",
            kld,
            "",
            "measured",
        ]
        for layer in range(4)
        for role in ("attn_q", "ffn_down")
        for kind, bits, kld in (("q4_K", 4.5, 0.001 * (layer + 1)), ("q6_K", 6.5625, -1e-6))
    ]
    rows.append(["output.weight", "output", -1, "512x99", "q6_K", 41580, "", "", 0.02, "", "predicted"])
    write_table(folder / "sensitivity.tsv", COLUMNS, [[*row, ""] for row in rows])
    write_json(folder / "sensitivity.json", complete(Sensitivity, PROBED))
    write_json(
        folder / "corpus" / "tuning.json",
        read_json(folder / "corpus" / "held-out.json")
        | {
            "corpus": "tuning",
            "warnings": ["a warning of the tuning text"],
        },
    )
    return folder, config


def fit_of(results: Results, name: str) -> Any:
    return next(fit for fit in results.size_targeted if fit.quant.name == name)


def test_the_baseline_is_the_best_file_within_the_budget(targeted: tuple[Path, dict[str, Any]]) -> None:
    results = read(*targeted)
    sizes = {quant.name: quant.bytes for quant in results.quants}
    assert sizes["Q6_K"] > sizes["fit"] > sizes["poor"] > sizes["Q3_K_M"] > sizes["small"]
    assert fit_of(results, "fit").baseline.name == "Q4_K_M"
    assert fit_of(results, "small").baseline is None
    # a file may be smaller than its budget, and than a baseline within it
    edit(targeted[0] / "recipes" / "small.json", budget={"size": sizes["Q3_K_M"], "bytes": sizes["Q3_K_M"]})
    assert fit_of(read(*targeted), "small").baseline.name == "Q3_K_M"
    assert fit_of(results, "fit").difference.mean == pytest.approx(
        fit_of(results, "fit").quant.divergence.mean - fit_of(results, "fit").baseline.divergence.mean
    )


def test_what_is_not_significantly_better_is_not_recommended(targeted: tuple[Path, dict[str, Any]]) -> None:
    folder, config = targeted
    results = read(folder, config)
    assert set(results.rejected) == {"poor"}
    assert fit_of(results, "fit").verdict == "significantly better than `Q4_K_M`"
    assert (
        fit_of(results, "poor").verdict
        == "**not recommended: failed the acceptance test** (significantly worse than `Q3_K_M`)"
    )
    assert fit_of(results, "small").verdict == "no other file within its budget to compare with"
    card = write.render(results, config)
    line = next(line for line in card.splitlines() if line.startswith("| [`poor`]"))
    assert "**not recommended: failed the acceptance test**" in line and "★" not in line
    assert "poor" not in " ".join(advice.choice(results))


def test_a_rejected_file_is_recommended_nowhere(targeted: tuple[Path, dict[str, Any]]) -> None:
    folder, config = targeted
    for gate, offered in ((True, False), (False, True)):
        config["fits"]["poor"]["gate"] = gate
        names = {quant.name for quant in frontier.recommendable(read(folder, config))}
        assert ("poor" in names) == offered and {"Q6_K", "fit"} <= names
    assert "poor" in {quant.name for quant in memory.recommendable(with_tables(read(folder, config)))}
    config["fits"]["poor"]["gate"] = True
    assert "poor" not in {quant.name for quant in memory.recommendable(with_tables(read(folder, config)))}


def with_tables(results: Results) -> Results:
    """Each file with a table of memory, an empty one."""
    return replace(results, quants=[replace(quant, memory={"rows": []}) for quant in results.quants])


def test_a_file_stays_rejected_where_its_baseline_is_withheld(
    targeted: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file may dominate the baseline, which is then not offered: the file stays rejected."""
    results = read(*targeted)
    usual = [SimpleNamespace(quant=quant) for quant in results.quants if quant.allocation is None]
    monkeypatch.setattr(frontier, "withheld", lambda *_: usual)
    published = view.view(results, targeted[1]).published
    assert {quant.name for quant in published.quants} == set(TARGETED)
    assert set(published.rejected) == {"poor"}
    assert "poor" not in " ".join(advice.choice(published))


def test_without_its_acceptance_test_a_file_is_judged_like_any_other(
    targeted: tuple[Path, dict[str, Any]],
) -> None:
    folder, config = targeted
    config["fits"]["poor"]["gate"] = False
    results = read(folder, config)
    assert not results.rejected
    assert "not recommended" not in write.render(results, config)


def test_what_was_not_measured_is_not_recommended(targeted: tuple[Path, dict[str, Any]]) -> None:
    folder, config = targeted
    config |= {"kld": False, "perplexity": False}
    results = read(folder, config)
    assert set(results.rejected) == {"fit", "poor"}
    assert fit_of(results, "fit").verdict.startswith(
        "**not recommended: failed the acceptance test** (not measured against `Q"
    )


def test_the_card_has_prediction_bound_gap_and_rules(targeted: tuple[Path, dict[str, Any]]) -> None:
    folder, config = targeted
    size = read_json(folder / "gguf" / "tiny-fit.json")["bytes"]
    memory = {
        "total": 1 << 30,
        "reserve": 1 << 20,
        "context": 4096,
        "cache": "q8_0",
        "kv": 5 << 20,
        "state": 0,
        "compute": 7 << 20,
        "file": 999,
    }
    budget = {"memory": {"total": 1 << 30, "context": 4096}, "bytes": size + 999}
    targeted_report = complete(Allocation, report(size, memory=memory, budget=budget))
    write_json(folder / "recipes" / "fit.json", targeted_report)
    results = read(folder, config)
    card = write.render(results, config)
    row = next(line for line in card.splitlines() if line.startswith("| `fit` | 1.00 GiB of memory"))
    measured = fit_of(results, "fit").measured
    assert "0.00600 ± 0.00020" in row and f"{measured.mean:.5f} ± {measured.error:.5f}" in row
    assert f"| {measured.mean / 0.006:.2f} |" in row
    for text in (
        "proven to be no less than 0.00599",
        "by HiGHS 1",
        "999 bytes of the budget's",
        "Never worth their bytes: `attn_q`: q5_0.",
        "- a warning of the allocator",
        "| cache of 4,096 tokens, q8_0 | 5.0 MiB |",
        "```\n^blk\\.(0|1)\\.attn_q\\.weight$=q4_K\n^output\\.weight$=q6_K\n```",
    ):
        assert text in card, text
    assert "recurrent states" not in card


def test_the_heat_map_is_at_the_type_that_most_tensors_have(targeted: tuple[Path, dict[str, Any]]) -> None:
    rows = read_sensitivity(targeted[0] / "sensitivity.tsv")
    shown = at_one_type(rows)
    assert shown is not None
    assert (shown.type, shown.tensors, shown.of) == ("q6_K", 9, 9)
    without = at_one_type([row for row in rows if row.role != "output"])
    assert without is not None
    assert without.type == "q4_K" and without.cells["ffn_down", 3] == 0.004
    assert without.how == {"measured": 8}
    assert at_one_type([]) is None
    card = write.render(read(*targeted), targeted[1])
    assert 'alt="KL divergence with one tensor alone at q6_K; the most at output (0.02000)' in card


def test_the_card_says_how_the_sensitivity_came_about_and_what_is_odd_about_it(
    targeted: tuple[Path, dict[str, Any]],
) -> None:
    card = write.render(read(*targeted), targeted[1])
    for text in (
        "over 6 chunks of 256 tokens of `tuning` (762 predictions)",
        "16 probes of 17 choices, in 75 s; 1 are predicted from these.",
        "before the first probe and after the last: 0 and 0.",
        "What tuning is made of:",
        "- a warning of the probes (sensitivity)",
        "- a warning of the tuning text (corpus tuning)",
    ):
        assert text in card, text
    write_json(targeted[0] / "sensitivity.json", complete(ImportedSensitivity, IMPORT))
    card = write.render(read(*targeted), targeted[1])
    assert "others measured it: `kld_results.csv`, each tensor alone at iq1_kt, times the curve over" in card
    assert "no column for 1 tensor (output.weight): the median of the role is taken (sensitivity)" in card
    assert "What tuning is made of" not in card


def test_the_command_draws_it_the_same_every_time(
    targeted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    for name in ("a.svg", "b.svg"):
        subprocess.run(
            [
                sys.executable,
                "-m",
                "quantmill.card.maps",
                "--spec",
                '{"config":{}}',
                "--sensitivity",
                targeted[0] / "sensitivity.tsv",
                "--out",
                tmp_path / name,
            ],
            check=True,
            capture_output=True,
        )
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_tensors_without_layers_fill_their_row_and_noise_has_the_least_colour(
    targeted: tuple[Path, dict[str, Any]],
) -> None:
    axes = maps.draw_sensitivity(read_sensitivity(targeted[0] / "sensitivity.tsv")).axes[0]
    widths = [patch.get_width() for patch in axes.patches]
    assert widths.count(4) == 1 and widths.count(1) == 8
    assert len({tuple(patch.get_facecolor()) for patch in axes.patches}) == 2


def test_a_file_for_two_memories_has_the_command_and_what_is_where(
    targeted: tuple[Path, dict[str, Any]],
) -> None:
    folder, config = targeted
    size = read_json(folder / "gguf" / "tiny-fit.json")["bytes"]
    gpu = {
        "weights": 100 << 20,
        "experts": 200 << 20,
        "cache": 5 << 20,
        "compute": 7 << 20,
        "reserve": 1 << 30,
    }
    pools = {
        "gpu": gpu | {"total": 2 << 30},
        "cpu": gpu | {"total": 4 << 30, "experts": 300 << 20, "cache": 0},
        "context": 4096,
        "cache_type": "f16",
        "layers": 40,
        "on_cpu": [0, 1],
        "flags": ["-ngl", "99", "-c", "4096", "--n-cpu-moe", "2"],
        "override": r"blk\.(0|1)\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU",
    }
    budget = {"pools": {"gpu": 2 << 30, "cpu": 4 << 30, "context": 4096}, "bytes": size + 999}
    write_json(
        folder / "recipes" / "fit.json", complete(Allocation, report(size, budget=budget, pools=pools))
    )
    card = write.render(read(folder, config), config)
    for text in (
        "| `fit` | 2.00 GiB of GPU and 4.00 GiB of CPU memory, 4,096 tokens of context |",
        "4,096 tokens of context, with the experts of 2 of 40 layers on the CPU:",
        "llama-server -m tiny-fit.gguf -ngl 99 -c 4096 --n-cpu-moe 2\n```",
        r"`--n-cpu-moe` is short for `-ot 'blk\.(0|1)\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU'`.",
        "| Use of the memory | GPU | CPU |\n|:--|--:|--:|\n| weights but experts | 100.0 MiB | 100.0 MiB |\n"
        "| experts | 200.0 MiB | 300.0 MiB |\n| cache and states | 5.0 MiB | 0.0 KiB |",
        "| of | 2.00 GiB | 4.00 GiB |",
    ):
        assert text in card, text
    pools |= {"on_cpu": [], "override": "", "flags": ["-ngl", "99", "-c", "4096"]}
    write_json(
        folder / "recipes" / "fit.json", complete(Allocation, report(size, budget=budget, pools=pools))
    )
    card = write.render(read(folder, config), config)
    assert "4,096 tokens of context, with all experts on the GPU:" in card and "is short for" not in card
