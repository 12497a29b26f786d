"""The card whole: front matter, the table against its sources, missing parts, odd names, the golden file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantmill.card import write
from quantmill.files import read_json, write_json
from quantmill.formats.measurements import HumanEval, Tasks
from quantmill.formats.source import Memory
from quantmill.judge.results import read
from quantmill.stages import VERSIONS
from reports import complete, sha

Tree = tuple[Path, dict[str, Any]]

GOLDEN = Path(__file__).parents[2] / "data" / "card.golden.md"


def edit(path: Path, **fields: Any) -> None:
    write_json(path, read_json(path) | fields)


def card_of(tree: Tree) -> str:
    folder, config = tree
    return write.render(read(folder, config), config)


def table(markdown: str, first: str) -> list[dict[str, str]]:
    """The rows of the first table whose header starts with `| first |`."""
    lines = markdown.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {first} |"))
    header = cells(lines[start])
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(header, cells(line), strict=True)))
    return rows


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def test_the_hub_reads_the_front_matter(tree: Tree) -> None:
    from huggingface_hub import ModelCard

    folder, config = tree
    data = ModelCard(card_of(tree)).data
    assert data.license == "apache-2.0"
    assert data.base_model == "example/Tiny-Test"
    assert data.base_model_relation == "quantized"
    assert data.language == ["en"]
    assert data.pipeline_tag == "text-generation"
    assert {"gguf", "imatrix", "test"} <= set(data.tags)
    metrics = {result.metric_name: result.metric_value for result in data.eval_results}
    for name in config["recipes"]:
        measured = read_json(folder / "bench" / name / "perplexity.json")["perplexity"]
        assert metrics[f"Perplexity of {name}"] == pytest.approx(measured, abs=5e-5)
    assert {result.dataset_name for result in data.eval_results} == {"held-out, 40 chunks of 512 tokens"}


def test_every_number_of_the_table_is_its_sources(tree: Tree) -> None:
    folder, config = tree
    rows = table(card_of(tree), "File")
    assert rows[0]["File"] == "*source*"
    by_name = {re.sub(r"^★ |\[`|`\].*$", "", row["File"]): row for row in rows[1:]}
    assert set(by_name) == set(config["recipes"])
    for name, row in by_name.items():
        perplexity = read_json(folder / "bench" / name / "perplexity.json")
        speed = read_json(folder / "bench" / name / "speed.json")
        file = read_json(folder / "gguf" / f"tiny-{name}.json")
        plan = read_json(folder / "plans" / f"{name}.json")
        assert row["File"].endswith(f"]({file['file']})")
        assert row["Type"] == plan["by_type"][0]["type"]
        assert row["Size"] == f"{file['bytes'] / 2**20:.1f} MiB"
        assert row["bpw"] == f"{plan['bpw']:.2f}"
        assert row["PPL"] == f"{perplexity['perplexity']:.3f} ± {perplexity['error']:.3f}"
        for half, column in (("prompt", "pp512 t/s"), ("generate", "tg128 t/s")):
            mean, sd = re.fullmatch(r"\**([\d.]+) ± ([\d.]+)\**", row[column]).groups()  # type: ignore[union-attr]
            assert float(mean) == pytest.approx(speed[half]["mean"], abs=0.5)
            assert float(sd) == pytest.approx(speed[half]["sd"], abs=0.5)
        assert row["sha256"] == f"`{file['sha256'][:8]}`"
        assert f"{file['sha256']}  {file['file']}" in card_of(tree)
    # IQ2_XXS adds exactly 0.9 to the nll, sd 0.06 over 40 chunks; Q6_K 0.0008 and 0.004
    assert by_name["IQ2_XXS"]["Change to the source"] == "+146 ± 2 %, worse"
    assert by_name["Q6_K"]["Change to the source"] == "+0.08 ± 0.06 %, not distinguishable"


def test_the_perplexity_section_has_the_paired_differences(tree: Tree) -> None:
    section = card_of(tree).split("## Perplexity")[1]
    (row,) = [row for row in table(section, "File") if row["File"] == "`Q4_K_M`"]
    assert row["ln(PPL / source) ± error"] == "+0.02500 ± 0.00190"  # 0.012 / sqrt(40)
    assert row["Change, 95 % interval"] == "+2.14 % to +2.93 %"  # 0.025 ± 2.0227 · 0.0018974
    assert row["Verdict"] == "worse"


def test_the_divergence_is_the_first_measure(kld_tree: Tree) -> None:
    folder, _ = kld_tree
    card = card_of(kld_tree)
    assert list(table(card, "File")[1])[5:10] == ["KLD", "99.9 %", "Same top", "PPL", "Change to the source"]
    (section,) = card.split("## KL divergence")[1:]
    rows = {row["File"]: row for row in table(section, "File")}
    for name in ("Q8_0", "Q4_K_M"):
        measured, row = read_json(folder / "bench" / name / "kld.json"), rows[f"`{name}`"]
        kld, same, change = measured["kld"], measured["same_top"], measured["p_diff"]
        assert row["KLD"] == f"{kld['mean']:.5f} ± {kld['error']:.5f}"
        assert float(row["Median"]) == pytest.approx(kld["median"], abs=1e-5)
        assert float(row["99.9 %"]) == pytest.approx(kld["99.9%"], abs=1e-3)
        assert float(row["Max"]) == pytest.approx(kld["max"], abs=1e-3)
        assert row["Same top"] == f"{100 * same['mean']:.2f} ± {100 * same['error']:.2f} %"
        assert row["Δp"] == f"{100 * change['mean']:+.2f} ± {100 * change['error']:.2f} %"
        assert row["PPL ratio"] == f"{measured['ratio']['value']:.4f} ± {measured['ratio']['error']:.4f}"
        gap = measured["reference"]["gap"]
        assert row["Gap"] == f"{gap['mean']:.1e} ± {gap['error']:.1e}"
    assert "on 160 predictions that were kept whole" in section
    assert "of any prediction of the source from its own: 0." in section


def test_any_two_files_are_compared_in_pairs(kld_tree: Tree) -> None:
    section = card_of(kld_tree).split("Paired on the same chunks")[1]
    rows = {(row["File"], row["Compared with"]): row for row in table(section, "File")}
    assert len(rows) == 6 * 5 / 2
    assert rows["`Q6_K`", "`Q8_0`"]["Verdict"] == "worse"
    better = rows["`Q5_K_M`", "`Q4_K_L`"]
    assert better["Verdict"] == "better"
    assert better["Saves"] == "1.1 MiB, 9.8 %"
    assert better["More KLD"] == "-0.05100"


def test_many_files_are_compared_with_the_next_larger_alone(make_tree: Callable[..., Tree]) -> None:
    many = {f"Q{place}": ("q4_K", "q8_0", "q6_K", 0.002 * place, 0.01) for place in range(9)}
    folder, config = make_tree(recipes=many)
    section = card_of((folder, config | {"kld": True})).split("Paired on the same chunks")[1]
    assert [(row["File"], row["Compared with"]) for row in table(section, "File")][:2] == [
        ("`Q1`", "`Q0`"),
        ("`Q2`", "`Q1`"),
    ]


def test_a_floor_above_0_is_a_warning(kld_tree: Tree) -> None:
    folder, config = kld_tree
    path = folder / "bench" / "source" / "kld.json"
    measured = read_json(path)
    measured["kld"] |= {"max": 1e-5, "min": -2e-5}
    write_json(path, measured)
    warnings = card_of((folder, config)).split("**Warnings**")[1]
    assert "the source's own predictions diverge from themselves by up to 2.0e-05" in warnings


def test_the_devices_that_computed_are_named(kld_tree: Tree) -> None:
    folder, config = kld_tree
    gpu = {"device": "CUDA0", "description": "NVIDIA L4", "weights": 7 << 30, "cache": 1 << 30, "compute": 0}
    half = {"layers": 20, "of": 31, "devices": [gpu]}
    for path in (folder / "bench").glob("*/kld.json"):
        place = half if path.parent.name == "source" else half | {"layers": 31}
        more = {"cpu": {"chunks": 1, "mean": 2e-7, "max": 3e-6}} if path.parent.name == "source" else {}
        write_json(path, read_json(path) | {"devices": [place]} | more)
    text = card_of((folder, config)).split("## KL divergence")[1].split("| File |")[0]
    text = " ".join(text[text.index("Computed with") :].split())
    on = "on CUDA0 (NVIDIA L4; 7.00 GiB of weights, 1.00 GiB beside them)"
    assert (
        f"Computed with 20 of 31 layers {on}, the others on the CPU: source. Computed with all 31 layers"
        in text
    )
    assert "by 2.0e-07 on average, 3.0e-06 at most (1 chunk): smaller divergences are noise." in text


@pytest.mark.parametrize(
    ("off", "gone", "present"),
    [
        (
            "perplexity",
            ["## Perplexity", "PPL", "★", "model-index"],
            ["## Speed", "tg128"],
        ),
        ("speed", ["## Speed", "tg128", "tokens a second"], ["## Perplexity", "★"]),
        ("kld", ["KLD", "KL divergence"], ["## Perplexity", "★"]),
        ("imatrix", ["## Importance matrix", "imatrix.gguf", "- imatrix"], ["| Importance matrix | none |"]),
    ],
)
def test_what_was_not_measured_is_absent_and_not_broken(
    tree: Tree, off: str, gone: list[str], present: list[str]
) -> None:
    folder, config = tree
    card = card_of((folder, config | {off: False}))
    assert [text for text in gone if text in card] == []
    assert [text for text in present if text not in card] == []
    assert "None" not in card
    table(card, "File")  # as many cells in each row as in the header, or zip raises


def test_with_nothing_measured_there_is_still_a_card(tree: Tree) -> None:
    folder, config = tree
    card = card_of((folder, config | {"perplexity": False, "speed": False, "imatrix": False}))
    assert "Their quality was not measured" in card
    assert list(table(card, "File")[1]) == ["File", "In short", "Size", "Type", "bpw", "sha256"]


def test_a_bare_card_config_is_enough(tree: Tree) -> None:
    from huggingface_hub import ModelCard

    folder, config = tree
    card = card_of((folder, config | {"card": {}}))
    assert "# Tiny Test GGUF" in card
    assert "None" not in card
    assert ModelCard(card).data.license == "apache-2.0"  # what the model's own file says


def test_a_requantized_source_is_said_aloud_before_the_table(tree: Tree) -> None:
    folder, config = tree
    path = folder / "model.json"
    write_json(
        path, read_json(path) | {"quantized": True, "quantized_types": ["q4_1"], "types": {"q4_1": 29}}
    )
    for name in config["recipes"]:
        plan = folder / "plans" / f"{name}.json"
        write_json(plan, read_json(plan) | {"requantized": True})
    before, _ = card_of(tree).split("| File |", 1)
    assert "**The source was itself quantized** (q4_1). These files quantize it a second time" in before


def test_experts_under_the_floor_and_tensors_without_an_entry_are_shown(tree: Tree) -> None:
    folder, config = tree
    path = folder / "imatrix.json"
    both = [
        ("blk.1.ffn_up_exps.weight", 7, 1200),
        ("blk.1.ffn_gate_exps.weight", 7, 1200),
        ("blk.1.ffn_up_exps.weight", 2, 0),
        ("blk.1.ffn_gate_exps.weight", 2, 0),
        ("blk.2.ffn_up_exps.weight", 7, 1200),
    ]
    seen = [{"name": name, "expert": expert, "count": count} for name, expert, count in both]
    write_json(path, read_json(path) | {"experts_under_floor": seen})
    card = card_of((folder, config))
    assert "Under-sampled experts (fewer than 32 tokens; each weight is counted): 5." in card
    assert "| `blk.1.ffn_up_exps.weight`, `blk.1.ffn_gate_exps.weight` | 2 (0), 7 (1,200) |" in card
    assert "| `blk.2.ffn_up_exps.weight` | 7 (1,200) |" in card
    assert "Without an entry: 1 tensor (`token_embd.weight`)." in card


def test_names_and_texts_with_markdown_in_them_break_nothing(make_tree: Callable[..., Tree]) -> None:
    folder, config = make_tree(recipes={"my_best_+q.4*": ("q4_K", "q6_K", "q6_K", 0.02, 0.01)})
    path = folder / "model.json"
    write_json(path, read_json(path) | {"name": "a|b *c* <script>"})
    recipe = folder / "recipes" / "my_best_+q.4*.yaml"
    recipe.write_text("why: |\n  ```\n  a | b\n", encoding="utf-8")
    plan = folder / "plans" / "my_best_+q.4*.json"
    write_json(plan, read_json(plan) | {"warnings": ["width | of *x*\nis odd"]})
    card = card_of((folder, config | {"card": {"license": "mit", "title": "x | *y* `z`"}}))
    assert r"# x \| \*y\* \`z\`" in card
    assert "<script>" not in card
    assert r"a\|b \*c\* &lt;script&gt;" in card
    assert "- width \\| of \\*x\\* is odd (my_best\\_+q.4\\*)" in card
    assert "````yaml\nwhy: |" in card
    assert table(card, "File")[1]["File"] == "★ [`my_best_+q.4*`](tiny-my_best_%2Bq.4%2A.gguf)"


def test_evaluations_and_served_speed_have_their_sections(kld_tree: Tree) -> None:
    folder, config = kld_tree
    for place, name in enumerate(("source", *config["recipes"])):
        passes = [number % 10 < 6 - (name == "IQ2_XXS") * 4 for number in range(160)]
        passed = sum(passes)
        write_json(
            folder / "bench" / name / "humaneval.json",
            complete(
                HumanEval,
                {
                    "model_sha256": sha(name),
                    "seconds": 100.0,
                    "prompt_seconds": 2.0,
                    "problems": 160,
                    "passed": passed,
                    "pass_at_1": passed / 160,
                    "interval": [passed / 160 - 0.07, passed / 160 + 0.07],
                    "audits": {"empty": 0, "fenced": 160, "verbatim": 1, "cut_off": 2, "repetition": 0},
                    "failures": {"wrong": 60, "syntax": 3, "error": 0, "timeout": 1, "limits": 0},
                    "generated_tokens": 9000,
                    "tokens_per_s": 88.5,
                    "settings": {
                        "file": "HumanEval.jsonl.gz",
                        "prompt": "chat",
                        "max_tokens": 512,
                        "limit": None,
                        "confined": True,
                    },
                },
            ),
        )
        lines = (json.dumps({"task_id": str(number), "passed": one}) for number, one in enumerate(passes))
        (folder / "bench" / name / "humaneval.jsonl").write_text("\n".join(lines), encoding="utf-8")
        rate = {"mean": 100.0 + place, "sd": 1.5, "samples": [100.0] * 3}
        write_json(
            folder / "bench" / name / "served.json",
            {
                "model_sha256": sha(name),
                "threads": 2,
                "machine": {"cpu": "Example CPU", "cores": 2, "memory_bytes": 8 << 30},
                "server": "llama-cpp-python 0.3.36",
                "gpu": None,
                "workloads": [
                    {
                        "name": "short",
                        "prompt_tokens": 30,
                        "generated_tokens": 300,
                        "prefill": rate,
                        "decode": rate,
                    }
                ],
            },
        )
    config |= {"humaneval": True, "served": True}
    card = card_of((folder, config))
    (row,) = [row for row in table(card, "File") if "`Q8_0`" in row["File"]]
    assert row["HumanEval"] == "60.0 % (53 to 67)"
    section = card.split("## HumanEval")[1]
    assert (
        "160 problems, each file with the same settings: greedy, problems of HumanEval.jsonl.gz, " in section
    )
    assert "the generated code ran in a sandbox" in section
    rows = {row["File"]: row for row in table(section, "File")}
    assert rows["`IQ2_XXS`"]["Compared with the source"] == "**collapsed**, worse"
    assert rows["`Q8_0`"]["Compared with the source"] == "not distinguishable"
    assert rows["*source*"]["Passed"] == "96 of 160"
    audits = table(section.split("Why answers failed")[1], "File")
    assert (audits[0]["fenced"], audits[0]["cut off"], audits[0]["over the limits"]) == ("160", "2", "0")
    served = table(card.split("## Speed over HTTP")[1], "File")
    assert served[1]["Decode"] == "101.0 ± 1.5" and "Temperature" not in card
    from huggingface_hub import ModelCard

    metrics = {result.metric_name: result for result in ModelCard(card).data.eval_results}
    assert metrics["pass@1 of Q8_0"].metric_value == 0.6
    assert metrics["KL divergence of Q8_0 from the source"].metric_type == "kl_divergence"


def test_a_file_of_iks_types_is_used_with_ik_alone(tree: Tree, tmp_path: Path) -> None:
    folder, config = tree
    edit(folder / "plans" / "Q4_K_M.json", engine="ik")
    card = card_of(tree)
    usage = card.split("## How to use")[1].split("## Summary")[0]
    assert "`Q4_K_M` **needs [ik_llama.cpp]" in usage
    assert "tiny-Q4_K_M.gguf" not in usage.split("**needs")[0]
    (row,) = [row for row in table(card, "File") if "`Q4_K_M`" in row["File"]]
    assert row["Engine"] == "ik_llama.cpp"
    assert "- ik_llama.cpp" in card.split("---")[1]
    assert run(tree, tmp_path / "card").returncode == 0
    made = {path.name for path in (tmp_path / "card").rglob("Modelfile*")}
    assert made == {f"Modelfile.{name}" for name in config["recipes"] if name != "Q4_K_M"}


def test_a_file_of_ik_is_compared_with_the_source_in_ik(tree: Tree) -> None:
    folder, config = tree
    before = {quant.name: quant.difference for quant in read(folder, config).quants}
    config["engines"] = {name: "ik" if name == "Q4_K_M" else "mainline" for name in config["recipes"]}
    shutil.copytree(folder / "bench" / "source", folder / "bench" / "source-ik")
    nll = read_json(folder / "bench" / "source" / "perplexity.json")["nll"]
    edit(folder / "bench" / "source-ik" / "perplexity.json", nll=[value + 0.25 for value in nll])
    after = {quant.name: quant.difference for quant in read(folder, config).quants}
    one, other = after.pop("Q4_K_M"), before.pop("Q4_K_M")
    assert one is not None and other is not None
    assert one.mean == pytest.approx(other.mean - 0.25)
    assert after == before


def test_a_picture_of_sizes_alone_says_so(tree: Tree) -> None:
    card = card_of((tree[0], tree[1] | {"perplexity": False}))
    assert 'alt="The sizes of 6 files. The files range from IQ2_XXS (4.7 MiB) to Q8_0 (14.4 MiB).' in card


def test_the_files_of_the_repository_are_those_that_are_published(tree: Tree) -> None:
    folder, config = tree

    def listed(**changes: Any) -> set[str]:
        files = card_of((folder, config | changes)).split("## Files in the repository")[1]
        return {row["File"] for row in table(files, "File")} - {
            f"`tiny-{name}.gguf`" for name in config["recipes"]
        }

    always = {"`README.md`, `plots/`", "`index.html`", "`withheld.json`", "`modelfiles/`"}
    assert listed(include=[]) == always
    every = ["imatrix", "recipes", "measurements", "logs"]
    assert listed(include=every, repo="me/x") == always | {
        "`imatrix.gguf`, `imatrix.dat`",
        "`recipes/`, `plans/`",
        "`bench/`",
        "`logs/`",
        "`lock.json`",
        "`*.derivation.json`",
        "`SHA256SUMS`",
    }


def test_two_engines_are_compared_each_beside_its_own_source(tree: Tree) -> None:
    """ik may read the whole text a little worse than mainline does: its files are no worse for it."""
    folder, config = tree
    q5, q4 = (q for q in read(folder, config).quants if q.name in ("Q5_K_M", "Q4_K_M"))
    alike = q4.against(q5)
    shutil.copytree(folder / "bench" / "source", folder / "bench" / "source-ik")
    for row in ("source-ik", "Q4_K_M"):
        nll = read_json(folder / "bench" / row / "perplexity.json")["nll"]
        edit(folder / "bench" / row / "perplexity.json", nll=[value + 0.25 for value in nll])
    config["engines"] = {name: "ik" if name == "Q4_K_M" else "mainline" for name in config["recipes"]}
    q5, q4 = (q for q in read(folder, config).quants if q.name in ("Q5_K_M", "Q4_K_M"))
    assert (q4.against(q5).mean, q4.against(q5).error) == pytest.approx((alike.mean, alike.error))


def test_nothing_generates_in_ik(tree: Tree) -> None:
    folder, config = tree
    shutil.copytree(folder / "bench" / "source", folder / "bench" / "source-ik")
    config |= {"tasks": True, "engines": dict.fromkeys(config["recipes"], "ik")}
    task = {"name": "t", "metric": "acc", "value": 0.5, "stderr": None, "samples": 4, "chance": None}
    tasks = complete(Tasks, {"tasks": [task], "model_sha256": sha("source")})
    write_json(folder / "bench" / "source" / "tasks.json", tasks)
    results = read(folder, config)
    assert results.source["tasks"] == tasks
    assert {quant.measured["tasks"] is None for quant in results.quants} == {True}


@pytest.mark.parametrize("cut", [False, True], ids=["split by its recipe", "cut for the repository"])
def test_a_split_file_is_listed_and_downloaded_by_its_parts(tree: Tree, tmp_path: Path, cut: bool) -> None:
    folder, config = tree
    names = [f"tiny-Q6_K/tiny-Q6_K-0000{n}-of-00002.gguf" for n in (1, 2)]
    parts = [{"file": name, "bytes": 6 << 20, "sha256": name[-20:]} for name in names]
    if cut:
        write_json(folder / "parts.json", {"Q6_K": parts})
        config["parts"] = True
    else:
        edit(folder / "gguf" / "tiny-Q6_K.json", file=names[0], parts=parts)
    card = card_of((folder, config | {"repo": "me/tiny-GGUF"}))
    assert "hf download me/tiny-GGUF --include 'tiny-Q6_K/tiny-Q6_K-*.gguf' --local-dir ." in card
    assert f"| `{names[1]}` | Q6_K, 6.0 MiB (6.3 MB), part 2 of 2 |" in card
    assert f"{parts[1]['sha256']}  {names[1]}" in card
    (row,) = [row for row in table(card, "File") if "`Q6_K`" in row["File"]]
    assert row["sha256"] == "in parts"
    assert "tiny-Q6_K.gguf" not in card
    assert 'srcset="https://huggingface.co/me/tiny-GGUF/resolve/main/plots/size-dark.svg"' in card
    assert run(tree, tmp_path / "card").returncode == 0
    assert not (tmp_path / "card" / "modelfiles" / "Modelfile.Q6_K").exists()


def run(tree: Tree, where: Path) -> subprocess.CompletedProcess[str]:
    folder, config = tree
    command = [sys.executable, "-m", "quantmill.card.write", "--spec", json.dumps({"config": config})]
    command += ["--results", str(folder), "--card", str(where / "README.md"), "--plots", str(where / "plots")]
    workflow = str(Path(write.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": workflow}
    return subprocess.run(
        [*command, "--log", str(where / "log")], capture_output=True, text=True, env=environment, check=False
    )


def test_the_command_writes_card_and_plots_the_same_bytes_twice(tree: Tree, tmp_path: Path) -> None:
    for name in ("a", "b"):
        done = run(tree, tmp_path / name)
        assert (done.returncode, done.stderr) == (0, "")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert {"README.md", "index.html", "withheld.json", "modelfiles/Modelfile.Q8_0"} <= {
        str(file) for file in files
    }
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    card = (tmp_path / "a" / "README.md").read_text("utf-8")
    links = re.findall(r"\]\(([^):]+)\)|(?:src|srcset)=\"([^\"]+)\"", card)
    assert len(links) > 4
    for link in (one or other for one, other in links):
        assert link.endswith(".gguf") or (tmp_path / "a" / link).exists(), link


def test_the_modelfile_of_a_recipe_that_is_gone_goes(tree: Tree, tmp_path: Path) -> None:
    folder, config = tree
    (tmp_path / "card" / "modelfiles").mkdir(parents=True)
    for folder_of in ("card", "card/modelfiles"):
        (tmp_path / folder_of / "Modelfile.Q1_0").write_text("FROM ./old.gguf", encoding="utf-8")
    assert run((folder, config | {"recipes": ["Q8_0"]}), tmp_path / "card").returncode == 0
    assert [path.name for path in (tmp_path / "card").rglob("Modelfile*")] == ["Modelfile.Q8_0"]


def test_bad_input_is_one_line_and_nothing_is_written(tree: Tree, tmp_path: Path) -> None:
    folder, _ = tree
    (folder / "bench" / "Q6_K" / "speed.json").write_text("{", encoding="utf-8")
    done = run(tree, tmp_path / "card")
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*Q6_K/speed\.json: no valid JSON .*\n", done.stderr)
    assert [path.name for path in (tmp_path / "card").iterdir()] == ["log"]


def test_what_a_corpus_left_out_and_changed_is_said(tree: Tree) -> None:
    folder, _ = tree
    path = folder / "corpus" / "held-out.json"
    report = read_json(path)
    report["sources"][0] |= {"rows_broken": 1080, "rows_joined": 120}
    write_json(path, report)
    card = card_of(tree)
    assert [row["Rows broken"] for row in table(card, "Source of held-out")] == ["1,080", "3"]
    joined = "in 120 rows the system message stands in the first user turn"
    assert card.count(f"the chat template has no system role: {joined}") == 1
    text = "- prose: 3 of 1200 rows of prose.parquet are left out: 3 not UTF-8, such as row 9 ("
    assert card.count(text) == 1


@pytest.mark.parametrize(
    ("kind", "words", "used"),
    [
        ("projector", "a multimodal projector", "llama-server -m MODEL.gguf --mmproj tiny-Q8_0.gguf"),
        ("encoder", "an embedding model", "llama-server -m tiny-Q8_0.gguf --embeddings --port 8080"),
        ("encoder-decoder", "an encoder-decoder model", "llama-completion -m tiny-Q8_0.gguf"),
        ("draft", "a draft model", "llama-server -m MODEL.gguf --model-draft tiny-Q8_0.gguf"),
    ],
)
def test_a_card_says_how_a_file_of_another_kind_is_used(
    tree: Tree, tmp_path: Path, kind: str, words: str, used: str
) -> None:
    """By its own commands: it has no chat, no context, and Ollama has no use for it."""
    folder, config = tree
    edit(folder / "check.json", kind=kind, words=words, warnings=["it is old"])
    edit(folder / "checks" / "Q8_0.json", tried="read")
    tables = {"Q8_0": {"rows": [], "fits": []}}
    write_json(folder / "memory.json", complete(Memory, {"contexts": [4096], "recipes": tables}))
    config = config | {"recipes": ["Q8_0"], "perplexity": False, "speed": False, "imatrix": False}
    assert run((folder, config), tmp_path / "card").returncode == 0
    card = (tmp_path / "card" / "README.md").read_text("utf-8")
    assert used in card and f"This is {words}" in card and "- it is old (source)" in card
    assert "| Checked | the header of each file was read back" in card
    for other in ("llama-cli", "ollama", "Modelfile", "## Memory", "HumanEval", "KL divergence", "context"):
        assert other not in card, other
    assert not list((tmp_path / "card").rglob("Modelfile*"))


@pytest.mark.parametrize(
    ("fields", "dataset", "text"),
    [
        ({"chunks": 90, "context": 512}, "cal.txt", "made from 90 chunks of 512 tokens of `cal.txt`."),
        ({"chunks": None, "context": None}, "cal.txt", "made from `cal.txt`."),
        ({"chunks": 9, "context": None}, None, "made from 9 chunks."),
        ({"chunks": None, "context": None}, None, "The file does not say what it was made from."),
    ],
)
def test_an_imatrix_that_was_not_measured_here_is_said_to_be_given(
    tree: Tree, fields: dict[str, Any], dataset: str | None, text: str
) -> None:
    path = tree[0] / "imatrix.json"
    report = read_json(path)
    for measured in ("corpus", "seconds", "perplexity"):
        report.pop(measured, None)
    given = {"file": "x-imatrix.gguf", "sha256": "ab" * 32, "dataset": dataset}
    write_json(path, report | fields | {"tokens": None, "imported": given})
    card = card_of(tree)
    assert f"Not measured here: it was given as the file `x-imatrix.gguf` (sha256 `{'ab' * 32}`)" in card
    assert text in card and "| Importance matrix | `x-imatrix.gguf`, not measured here; " in card
    assert "Perplexity on the calibration text" not in card and "None" not in card


def test_the_card_is_the_golden_one(kld_tree: Tree) -> None:
    """Made again by `UPDATE_GOLDEN=1 pytest tests/unit/card`, with the version raised if cards exist."""
    head = f"<!-- card.write {VERSIONS['card.write']} -->\n"
    card = head + card_of(kld_tree)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(card, encoding="utf-8")
    assert card == GOLDEN.read_text("utf-8"), (
        "the card changed: raise the version of card.write in stages.py, then make the golden file again "
        "with UPDATE_GOLDEN=1"
    )


def test_the_memory_of_a_projector_beside_the_files_is_told(kld_tree: Tree) -> None:
    folder, _ = kld_tree
    fits = [{"total_bytes": 8 << 30, "cache": "f16", "context": 512}]
    projectors = [
        {"file": "seer-BF16.gguf", "bytes": 1 << 20, "fits": fits},
        {"file": "seer-Q8_0.gguf", "bytes": 1 << 19, "fits": []},
    ]
    row = {"context": 256, "cache": "f16"} | dict.fromkeys(
        ("file_bytes", "cache_bytes", "compute_bytes", "total_bytes"), 1 << 20
    )
    tables = {name: {"rows": [row], "fits": fits, "projectors": projectors} for name in ("Q8_0", "Q4_K_M")}
    write_json(folder / "memory.json", complete(Memory, {"contexts": [256], "recipes": tables}))
    card = card_of(kld_tree)
    assert "own size on top: `seer-BF16.gguf` 1.0 MiB, `seer-Q8_0.gguf` 512.0 KiB. Its compute" in card
    assert (
        "| Compute buffers | Total | Total with `seer-BF16.gguf` |\n|:--|--:|:--|--:|--:|--:|--:|--:|" in card
    )
    assert "that fits with seer-BF16.gguf beside the file</summary>\n\n| File | Memory |" in card
