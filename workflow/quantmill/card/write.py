"""The model card, its pictures, its page and its Modelfiles: `python -m quantmill.card.write`.

The card is the sections of `sections`, in their order. All files are made
before any of them is written; the card is written last.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from quantmill import command, text
from quantmill.card import maps, ollama, page, plots, template
from quantmill.card.sections import NONE_OFFERED, SECTIONS
from quantmill.card.view import View, loads_in_ollama, view
from quantmill.errors import QuantmillError
from quantmill.files import write_text
from quantmill.formats import settings
from quantmill.formats.publication import WITHHELD
from quantmill.judge import same_size, together
from quantmill.judge.results import Results, read
from quantmill.progress import Log


def render(
    measured: Results,
    config: settings.Card,
    plots_folder: str = "plots",
    competitors: Sequence[list[same_size.Entry]] = (),
) -> str:
    """The card as markdown; `config` as the spec of the stage has it, `plots_folder` relative to the card.

    Where every file is withheld the card tells that and why, and nothing else
    about them. `competitors` are the files of the models of the same-size
    comparison, in the order of the config.
    """
    return card(view(measured, config, plots_folder, competitors))


def card(view: View) -> str:
    """The card as markdown."""
    sections = SECTIONS if view.offered else NONE_OFFERED
    built = {name: build(view) for name, build in sections.items()}
    texts = [
        template.render(f"sections/{name}.md.j2", values).strip()
        for name, values in built.items()
        if values is not None
    ]
    return "\n\n".join(texts) + "\n"


def modelfiles(view: View) -> dict[str, str]:
    """The Modelfiles by name: one for each file that is offered and that Ollama can load."""
    return {
        f"Modelfile.{quant.name}": ollama.modelfile(
            quant.file, view.context, view.published.facts, view.sampling
        )
        for quant in view.offered
        if loads_in_ollama(quant, view.published)
    }


def main(args: argparse.Namespace, log: Log) -> None:
    """Read the results, make all files, then write them."""
    config: settings.Card = args.spec["config"]
    measured = read(args.results, config)
    others = config["card"].get("iso_disk") or []
    competitors = [same_size.read_competitor(Path(model["path"])) for model in others]
    projectors = together.read(args.results.parent, config.get("together", {}))
    shown = view(measured, config, _beside(args.plots, args.card), competitors, projectors)
    markdown, texts = card(shown), modelfiles(shown)
    html = page.render(measured, shown.withheld, shown.title)
    plots.sizes(measured, args.plots / "size.svg")
    plots.save(lambda theme: maps.draw_bits(shown.shown, theme), args.plots / "bits.svg")
    folder = args.card.parent
    for old in [*folder.glob("Modelfile.*"), *folder.glob("modelfiles/*")]:
        if old.parent == folder or old.name not in texts:  # beside the card is where they were once
            old.unlink()
    (folder / "modelfiles").mkdir(parents=True, exist_ok=True)
    for name, content in texts.items():
        write_text(folder / "modelfiles" / name, content)
    write_text(folder / "index.html", html)
    withheld = [verdict.facts for verdict in shown.withheld]
    policy = config.get("withhold", "none")
    WITHHELD.write(folder / "withheld.json", {"policy": policy, "withheld": withheld})
    write_text(args.card, markdown)
    log.say(f"card of {text.plural(len(shown.offered), 'file')}: {args.card}")
    for verdict in shown.withheld:
        log.say(f"withheld: {verdict.quant.name}, {verdict.reason}: {verdict.figure}")


def _beside(plots_folder: Path, card: Path) -> str:
    """The plots' folder as the card links it."""
    try:
        return plots_folder.resolve().relative_to(card.resolve().parent).as_posix()
    except ValueError:
        raise QuantmillError("the plots must lie below the card's folder", plots_folder) from None


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--results", type=Path, required=True, help="folder of the model's results")
    arguments.add_argument("--card", type=Path, required=True, help="markdown file to write")
    arguments.add_argument("--plots", type=Path, required=True, help="folder of the plots to write")
    command.run(arguments, main)
