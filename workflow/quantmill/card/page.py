"""The card's interactive page, one file that needs no network: the pictures, to point at and to filter.

Vega-Lite's charts through altair, their JavaScript from vl-convert, both in the
page itself. The marks are SVG, so that they scale, print, and can be read by
any program that reads the page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from quantmill.card import template
from quantmill.card.charts import CHARTS
from quantmill.judge.frontier import Unneeded
from quantmill.judge.results import Results


def render(results: Results, withheld: Sequence[Unneeded], title: str) -> str:
    """The page as HTML; files that are withheld are drawn as such."""
    import vl_convert

    charts = [chart for build in CHARTS if (chart := build(results, withheld)) is not None]
    specs = {chart.name: chart.spec for chart in charts}
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    values = {
        "title": escape(title),
        "charts": charts,
        "style": _text("page.css"),
        "script": _text("page.js"),
        # A script ends at its closing tag, even within a text.
        "bundle": bundle.replace("</script", "<\\/script"),
        "specs": json.dumps(specs, sort_keys=True).replace("</", "<\\/"),
    }
    return template.render("page.html.j2", values)


def _text(name: str) -> str:
    return (template.FOLDER / name).read_text("utf-8")
