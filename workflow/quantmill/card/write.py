"""The model card and its plots: `python -m quantmill.card.write`.

The markdown is made by the template `card.md.j2` beside this file from the
rows of `tables` and the sentences of `advice`; the front matter by the Hub's
own classes, so that the Hub can read it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantmill import command
from quantmill.card import advice, fits, plots, tables, text
from quantmill.card.results import Quant, Results, read
from quantmill.errors import QuantmillError
from quantmill.files import write_text
from quantmill.progress import Log

_HUB_FIELDS = ("license_name", "license_link", "language", "pipeline_tag", "library_name", "datasets")
_CONTEXT = 4096
"""Context of the examples, where the model's own is not smaller: what fits any machine."""


def render(results: Results, config: dict[str, Any], plots_folder: str = "plots") -> str:
    """The card as markdown; `config` as the spec of the stage has it, `plots_folder` relative to the card."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for function in (
        text.size, text.decimal_size, text.count, text.fixed, text.percent, text.share, text.nats,
        text.small, text.rate, text.duration, text.plural, text.md, text.code, text.fence, tables.uneven,
        tables.by_reason,
    ):  # fmt: skip
        environment.filters[function.__name__] = function
    card = config["card"]
    pick = _pick(results)
    speed = results.speed
    return environment.get_template("card.md.j2").render(
        front_matter=front_matter(results, config),
        title=_title(results, config),
        name=config["model"],
        card={"about": None, "credits": None, "repo": None, **card},
        base_models=_listed(card.get("base_model")),
        source=config.get("source"),
        toolchain=sorted(config["toolchain"].items()),
        results=results,
        measured={"kld": results.kld, "perplexity": results.perplexity, "speed": speed},
        prompt=speed["prompt"]["tokens"] if speed else None,
        generate=speed["generate"]["tokens"] if speed else None,
        imatrix=results.imatrix,
        with_imatrix=[quant.name for quant in results.quants if quant.plan["imatrix"]],
        requantized=[quant.name for quant in results.quants if quant.plan["requantized"]],
        picture=picture_of(results),
        plots=plots_folder,
        choice=advice.choice(results),
        finding=advice.finding(results),
        bits_finding=_bits_finding(pick),
        rows=tables.rows(results),
        checksums=_checksums(results, config),
        warnings=tables.warnings(results),
        pairs=tables.pairs(results),
        fits=results.fits,
        sensitivity=fits.sensitivity(results.sensitivities),
        roles=tables.roles(results),
        bits={quant.name: tables.bits_by_role(quant) for quant in results.quants},
        fallbacks=tables.fallbacks(results),
        machines=tables.machines(results),
        pick=pick,
        context=min(results.facts["context_length"] or _CONTEXT, _CONTEXT),
        chat=bool(results.facts["chat_template"]),
    )


def front_matter(results: Results, config: dict[str, Any]) -> str:
    """The YAML that the Hub reads, without its `---` lines, by huggingface_hub's own classes."""
    from huggingface_hub.repocard_data import EvalResult, ModelCardData

    card = config["card"]
    tags = [
        "gguf",
        "quantized",
        "llama.cpp",
        *(["imatrix"] if results.imatrix else []),
        *card.get("tags", []),
    ]
    more: dict[str, Any] = {field: card[field] for field in _HUB_FIELDS if card.get(field)}
    if card.get("base_model"):
        more |= {"base_model": card["base_model"], "base_model_relation": "quantized"}
    if results.perplexity is not None and not results.absurd:
        corpus, chunks, context = (results.perplexity[key] for key in ("corpus", "chunks", "context"))
        more["model_name"] = _title(results, config)
        more["eval_results"] = [
            EvalResult(
                task_type="text-generation",
                dataset_type=corpus,
                dataset_name=f"{corpus}, {chunks} chunks of {context} tokens",
                metric_type="perplexity",
                metric_name=f"Perplexity of {quant.name}",
                metric_value=round(quant.perplexity["perplexity"], 4),
            )
            for quant in results.quants
            if quant.perplexity
        ]
    license = card.get("license") or results.facts["licence"]
    return ModelCardData(license=license, tags=tags, **more).to_yaml()


def main(args: argparse.Namespace, log: Log) -> None:
    """Read the results, draw the plots, write the card last."""
    config = args.spec["config"]
    results = read(args.results, config)
    folder = _beside(args.plots, args.card)
    markdown = render(results, config, folder)
    plots.bits(results, args.plots / "bits.svg")
    for measure, draw in (("kld", plots.size_kld), ("perplexity", plots.size_perplexity)):
        picture = f"size-{measure}.svg"
        if picture == picture_of(results):
            draw(results, args.plots / picture)
        else:
            (args.plots / picture).unlink(missing_ok=True)
    write_text(args.card, markdown)
    log.say(f"card of {text.plural(len(results.quants), 'file')}: {args.card}")


def picture_of(results: Results) -> str | None:
    """The picture of size against quality, by the first measure that there is."""
    if results.kld is not None:
        return "size-kld.svg"
    return None if results.perplexity is None else "size-perplexity.svg"


def _title(results: Results, config: dict[str, Any]) -> str:
    if config["card"].get("title"):
        return str(config["card"]["title"])
    base = _listed(config["card"].get("base_model"))
    return f"{base[0].rsplit('/', 1)[-1] if base else results.facts['name'] or config['model']} GGUF"


def _pick(results: Results) -> Quant:
    """The file of the examples: the one to take where that is known, else the largest."""
    return advice.recommended(results) or results.quants[0]


def _bits_finding(pick: Quant) -> str:
    above, below = tables.uneven(pick)
    said = [f"In {pick.name} most bytes are {pick.type}"]
    said += [f"above it: {'; '.join(above)}".replace("`", "")] if above else []
    said += [f"below it: {'; '.join(below)}".replace("`", "")] if below else []
    return f"Bits per weight by layer and role. {', '.join(said)}."


def _checksums(results: Results, config: dict[str, Any]) -> str:
    lines = [f"{quant.sha256}  {quant.file}" for quant in results.quants]
    return "\n".join([*lines, f"{results.facts['sha256']}  {config.get('source') or 'source'}"])


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


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
