"""What a card of thirty files costs: all that `card.write` makes, from measurements that are made up."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from statistics import median

from pairs import run
from rows import Bench, Row
from stages import ROOT

sys.path.append(str(ROOT / "tests" / "unit" / "card"))

MOST = 10.0  # seconds
LAYERS = 32
MAIN = ("q8_0", "q6_K", "q5_K", "q4_K", "iq4_xs", "q3_K")
EMBEDDINGS = ("f16", "q8_0", "q6_K", "q5_K", "q4_K")


def of_30(bench: Bench) -> Iterable[Row]:
    """Thirty files of 32 layers with divergence, perplexity and speed; what is dominated is withheld."""
    import conftest

    folder = bench.work.path("card/tiny").parent / "tiny"
    recipes = {
        f"{main}-{embeddings}": (main, embeddings, "q6_K", 0.004 * place + 0.001 * more, 0.01)
        for place, main in enumerate(MAIN)
        for more, embeddings in enumerate(EMBEDDINGS)
    }
    config = conftest.make(folder, recipes=recipes, layers=LAYERS) | {"kld": True, "withhold": "dominated"}
    out = bench.work.path("card/out/README.md")
    command = [sys.executable, "-m", "quantmill.card.write", "--spec", json.dumps({"config": config})]
    command += ["--results", str(folder), "--card", str(out), "--plots", str(out.parent / "plots")]
    command += ["--log", str(bench.work.path("logs/card.log"))]
    made = [run(command) for _ in range(bench.repeat)]
    taken = [one.seconds for one in made]
    middle, peak = median(taken), max(one.peak for one in made) >> 20
    ours = f"{middle:.3g} s ({min(taken):.3g} to {max(taken):.3g}), {peak} MiB"
    yield Row(
        f"the card of {len(recipes)} files, {LAYERS} layers", ours, "", "", f"≤ {MOST:g} s", middle <= MOST
    )
