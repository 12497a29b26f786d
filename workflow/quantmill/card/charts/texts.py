"""What each corpus is made of: the shares of its sources."""

from __future__ import annotations

from collections.abc import Sequence

from quantmill.card.charts.chart import WIDTH, Chart
from quantmill.judge.frontier import Unneeded
from quantmill.judge.results import Results


def build(results: Results, _: Sequence[Unneeded]) -> Chart | None:
    """Where any file was calibrated or measured on a corpus."""
    import altair as alt

    rows = [
        {
            "corpus": name,
            "source": source["name"],
            "file": source["file"],
            "rows": source["rows_used"],
            "tokens": source["tokens"],
            "share": round(100 * source["share_got"], 2),
        }
        for name, corpus in results.corpora.items()
        for source in corpus["sources"]
    ]
    if not rows:
        return None
    tooltips = [
        alt.Tooltip("source:N"),
        alt.Tooltip("file:N"),
        alt.Tooltip("share:Q", title="% of the tokens"),
        alt.Tooltip("tokens:Q", format=","),
        alt.Tooltip("rows:Q", format=","),
    ]
    color = alt.Color(
        "source:N", title=None, scale=alt.Scale(scheme="viridis"), legend=alt.Legend(orient="top")
    )
    drawn = (
        alt.Chart(alt.NamedData("texts"))
        .mark_bar()
        .encode(
            x=alt.X("share:Q", title="% of the tokens", scale=alt.Scale(domain=[0, 100])),
            y=alt.Y("corpus:N", title=None),
            color=color,
            tooltip=tooltips,
        )
        .properties(width=WIDTH, height=alt.Step(28))
    )
    return Chart(
        "texts",
        "What the texts are made of",
        "The share of each source, in tokens, in the texts for calibration and measurement.",
        drawn,
        rows,
    )
