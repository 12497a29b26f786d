"""The table of hours, memory and disk, as Snakemake's runs print it."""

from pathlib import Path

from checkout import Checkout


def test_dry_runs_runs_and_plans_have_the_table(tmp_path: Path) -> None:
    checkout = Checkout.build(tmp_path / "checkout")
    dry = checkout.run("-n")
    assert "to make " not in dry.stdout
    table = [line.split("  ")[0] for line in dry.stderr.partition("to make ")[2].splitlines()]
    assert table[1:11] == [
        *("source", "corpora", "importance matrix", "sensitivity", "files", "KL divergence"),
        *("perplexity", "speed", "plans, cards and the like", "total"),
    ]
    assert "to make " not in checkout.run("-n", "--quiet", "all").stderr
    # Plans take no time worth a table; what is still to be made of all comes at their end.
    plans = checkout.run("plans")
    before, _, after = plans.stderr.partition("steps (100%) done")
    assert "to make " not in before
    assert "units in the store" in after.partition("to make ")[2]
    assert checkout.run("plans").stderr.count("to make ") == 1  # nothing was due
    # A run has it before its first job.
    run = checkout.run("results/tiny/bench/source/speed.json")
    assert run.stderr.index("to make ") < run.stderr.index("speed of source")
