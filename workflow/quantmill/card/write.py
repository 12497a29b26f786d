"""The model card, its pictures, its page and its Modelfiles: `python -m quantmill.card.write`.

The markdown is made by the template `card.md.j2` beside this file from the
rows of `tables` and the sentences of `advice`; the front matter by the Hub's
own classes, so that the Hub can read it. All is made before any of it is
written, the card last.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantmill import command, text
from quantmill.card import maps, ollama, page, plots, tables, texts
from quantmill.errors import QuantmillError
from quantmill.files import write_json, write_text
from quantmill.judge import acceptance, advice, frontier, memory, same_size
from quantmill.judge.frontier import Verdict
from quantmill.judge.results import DECODER, HUMANEVAL, Quant, Results, read
from quantmill.progress import Log

if TYPE_CHECKING:
    from jinja2 import Template

_HUB_FIELDS = (
    "license_name", "license_link", "language", "pipeline_tag", "library_name", "datasets", "quantized_by"
)  # fmt: skip
_CONTEXT = 4096
"""Context of the examples, where the model's own is not smaller: what fits any machine."""

_AUDITS = {
    "cut_off": "cut off", "limits": "over the limits", "max_tokens": "tokens at most",
    "prompt": "prompted by", "file": "problems of", "limit": "the first",
}  # fmt: skip


@dataclass(frozen=True)
class Rival:
    """Another model on the same disk: its name, where its figures come from, the bands."""

    name: str
    source: str
    bands: list[same_size.Band]

    @property
    def scored(self) -> bool:
        """Whether both sides have a HumanEval score."""
        return all(any(e and e.score for e in side) for side in self._sides)

    @property
    def diverged(self) -> bool:
        """Whether both sides have a divergence."""
        return all(any(e and e.kld is not None for e in side) for side in self._sides)

    @property
    def _sides(self) -> tuple[list[same_size.Entry | None], list[same_size.Entry | None]]:
        return [band.ours for band in self.bands], [band.theirs for band in self.bands]


def template(name: str, *filters: Callable[..., Any]) -> Template:
    """A template beside this file, with what `text` writes for people and `filters` as filters."""
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
        text.small, text.rate, text.duration, text.plural, text.md, text.code, text.fence, *filters,
    ):  # fmt: skip
        environment.filters[function.__name__] = function
    return environment.get_template(name)


def render(
    measured: Results,
    config: dict[str, Any],
    plots_folder: str = "plots",
    rivals: Sequence[list[same_size.Entry]] = (),
) -> str:
    """The card as markdown; `config` as the spec of the stage has it, `plots_folder` relative to the card.

    Where every file is withheld it says so and why, and nothing else of them.
    `rivals` are the files of the models under `card.iso_disk`, in its order.
    """
    withheld, kept = offered(measured, config)
    results = kept if kept.quants else measured
    card, speed, repo = config["card"], measured.speed, config.get("repo")
    pick = _pick(results)
    foreign = [quant for quant in results.quants if _foreign(quant)]
    values = _values(results, config)
    with_memory, recommendable = memory.measured(results), memory.recommendable(results)
    filters = (
        tables.uneven, tables.by_reason, tables.starved, tables.longest, plots.dark, passed, score, audit,
        engine, download, task_score, tally,
    )  # fmt: skip
    return template("card.md.j2", *filters).render(
        front_matter=front_matter(kept, config),
        title=_title(results, config),
        name=config["model"],
        **{field: texts.render(card.get(field) or "", values, f"card.{field}") for field in texts.FIELDS},
        repo=repo,
        include=config["include"],
        absolute=f"https://huggingface.co/{repo}/resolve/main/" if repo else "",
        base_models=listed(card.get("base_model")),
        source=config["source"],
        kind=measured.kind,
        toolchain=sorted(config["toolchain"].items()),
        results=measured,
        offered=kept.quants,
        withheld=withheld,
        collapsed=frontier,
        doubts=[said for what, said in measured.doubts.items() if said != measured.unranked],
        rivals=[
            Rival(given["name"], given.get("source") or "", same_size.bands(same_size.ours(results), files))
            for given, files in zip(card.get("iso_disk") or [], rivals, strict=True)
        ],
        devices=memory.by_device(results),
        excluded=frontier.smaller(recommendable, results) != recommendable,
        contexts=memory.contexts(results),
        memory=with_memory,
        per_token=memory.per_token(with_memory[0]) if with_memory else {},
        humaneval=tables.evaluated(measured, "humaneval"),
        served=tables.evaluated(measured, "served"),
        gpus_of=lambda rows: [(row, served["gpu"]) for row, served in rows if served["gpu"]],
        tasks=tables.task_rows(measured),
        beside={q.name: tables.beside_source(measured, q, HUMANEVAL) for q in measured.quants},
        failing={q.name: frontier.failing(q, measured) for q in measured.quants},
        measured={"kld": measured.kld, "perplexity": measured.perplexity, "speed": speed},
        prompt=speed["prompt"]["tokens"] if speed else None,
        generate=speed["generate"]["tokens"] if speed else None,
        imatrix=measured.imatrix,
        with_imatrix=[quant.name for quant in results.quants if quant.plan["imatrix"]],
        requantized=[quant.name for quant in results.quants if quant.plan["requantized"]],
        plots=plots_folder,
        choice=advice.choice(results),
        finding=advice.finding(results),
        bits_finding=_bits_finding(pick),
        rows=tables.rows(results),
        checksums=_checksums(results, config),
        warnings=tables.warnings(measured),
        pairs=tables.pairs(measured),
        fits=measured.fits,
        sensitivity=acceptance.sensitivity(measured.sensitivities),
        roles=tables.roles(results),
        bits={quant.name: tables.bits_by_role(quant) for quant in results.quants},
        fallbacks=tables.fallbacks(results),
        machines=tables.machines(measured),
        pick=pick,
        native=pick if not _foreign(pick) else next((q for q in results.quants if not _foreign(q)), None),
        foreign=foreign,
        loadable=next((q for q in [pick, *results.quants] if _loadable(q, results)), None),
        tried=tables.tried(results.quants),
        context=_context(results),
        chat=bool(results.facts["chat_template"]),
        ollama=_chat(results),
    )


def offered(results: Results, config: dict[str, Any]) -> tuple[list[Verdict], Results]:
    """What is withheld, and the results of what is not; there may be nothing that is not."""
    withheld = frontier.withheld(results, config.get("withhold", "none"))
    names = {verdict.quant.name for verdict in withheld}
    kept = [quant for quant in results.quants if quant.name not in names]
    return withheld, replace(results, quants=kept, withheld=[verdict.quant for verdict in withheld])


def front_matter(results: Results, config: dict[str, Any]) -> str:
    """The YAML that the Hub reads, without its `---` lines, by huggingface_hub's own classes."""
    from huggingface_hub.repocard_data import ModelCardData

    card = config["card"]
    tags = ["gguf", "quantized", "llama.cpp", *(["imatrix"] if results.imatrix else [])]
    if any(_foreign(quant) for quant in results.quants):
        tags.append("ik_llama.cpp")
    tags += card.get("tags") or []
    more = hub_fields(card)
    if found := _evaluations(results):
        more |= {"model_name": _title(results, config), "eval_results": found}
    license = card.get("license") or results.facts["licence"]
    return ModelCardData(license=license, tags=tags, **more).to_yaml()


def _evaluations(results: Results) -> list[Any]:
    """What was measured of each file, as the Hub's EvalResult; nothing that the source itself condemns."""
    from huggingface_hub.repocard_data import EvalResult

    def result(data: str, name: str, metric: str, label: str, value: float) -> Any:
        return EvalResult(
            task_type="text-generation", dataset_type=data, dataset_name=name, metric_type=metric,
            metric_name=label, metric_value=value,
        )  # fmt: skip

    def text_of(measured: dict[str, Any]) -> str:
        return f"{measured['corpus']}, {measured['chunks']} chunks of {measured['context']} tokens"

    found = []
    for q in results.quants:
        if q.perplexity and not results.unranked:
            value = round(q.perplexity["perplexity"], 4)
            label = f"Perplexity of {q.name}"
            found.append(result(q.perplexity["corpus"], text_of(q.perplexity), "perplexity", label, value))
        if q.kld and q.divergence and not results.unranked:
            value = round(q.divergence.mean, 6)
            label = f"KL divergence of {q.name} from the source"
            found.append(result(q.kld["corpus"], text_of(q.kld), "kl_divergence", label, value))
        for name, one in q.scores.items():
            if name == HUMANEVAL:
                label = f"pass@1 of {q.name}"
                found.append(result("openai_humaneval", name, "pass@1", label, round(one.value, 4)))
            else:
                metric, task = one.words.split(",")[0], name.partition(" (")[0]
                found.append(result(task, task, metric, f"{metric} of {q.name}", round(one.value, 4)))
    return found


def main(args: argparse.Namespace, log: Log) -> None:
    """Read the results, make all, then write all; the card last."""
    config = args.spec["config"]
    measured = read(args.results, config)
    withheld, results = offered(measured, config)
    rivals = [same_size.read_rival(Path(rival["path"])) for rival in config["card"].get("iso_disk") or []]
    folder = _beside(args.plots, args.card)
    markdown = render(measured, config, folder, rivals)
    html = page.render(measured, withheld, _title(measured, config))
    modelfiles = {
        f"Modelfile.{quant.name}": ollama.modelfile(quant.file, _context(results), results.facts)
        for quant in results.quants
        if _loadable(quant, results)
    }
    plots.sizes(measured, args.plots / "size.svg")
    drawn = results if results.quants else measured
    plots.save(lambda theme: maps.draw_bits(drawn, theme), args.plots / "bits.svg")
    beside = args.card.parent
    for old in beside.glob("Modelfile.*"):
        if old.name not in modelfiles:
            old.unlink()
    for name, said in modelfiles.items():
        write_text(beside / name, said)
    write_text(beside / "index.html", html)
    listed = [verdict.facts for verdict in withheld]
    write_json(beside / "withheld.json", {"policy": config.get("withhold", "none"), "withheld": listed})
    write_text(args.card, markdown)
    log.say(f"card of {text.plural(len(results.quants), 'file')}: {args.card}")
    for verdict in withheld:
        log.say(f"withheld: {verdict.quant.name}, {verdict.reason}: {verdict.figure}")


def passed(measured: dict[str, Any] | None) -> str:
    """pass@1 of humaneval.json in percent, with its interval."""
    if measured is None:
        return ""
    low, high = measured["interval"]
    return f"{100 * measured['pass_at_1']:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def score(entry: same_size.Entry | None) -> str:
    """A share in percent, with its interval where there is one."""
    if entry is None or entry.score is None:
        return ""
    one = entry.score
    span = f" ({100 * one.low:.0f} to {100 * one.high:.0f})" if one.low < one.high else ""
    return f"{100 * one.value:.1f} %{span}"


def task_score(task: dict[str, Any]) -> str:
    """A task's score in percent, with its standard error where it has one."""
    error = "" if task["stderr"] is None else f" ± {100 * task['stderr']:.1f}"
    return f"{100 * task['value']:.1f}{error} %"


def tally(words: Iterable[str]) -> str:
    """How many there are of each: `3 dominated, 1 collapsed`."""
    return ", ".join(f"{number} {word}" for word, number in Counter(words).items())


def audit(key: str) -> str:
    """The name of an audit or a kind of failure in words."""
    return _AUDITS.get(key, key)


def engine(name: str) -> str:
    """What a plan's engine is called by those who use it."""
    return {"mainline": "llama.cpp", "ik": "ik_llama.cpp"}.get(name, name)


def download(quant: Quant) -> str:
    """What `hf download` takes of a file's name: all parts of a split one."""
    if not quant.parts:
        return quant.file
    return f"--include '{quant.file.rsplit('-00001-of-', 1)[0]}-*.gguf'"


def _loadable(quant: Quant, results: Results) -> bool:
    """Whether Ollama can have it: a language model of llama.cpp's types, and one file."""
    return results.kind == DECODER and not _foreign(quant) and not quant.parts


def _foreign(quant: Quant) -> bool:
    return bool(quant.plan["engine"] != "mainline")


def _chat(results: Results) -> ollama.Chat | None:
    return ollama.chat(results.facts["chat_template"], results.facts.get("tokenizer") or "")


def _context(results: Results) -> int:
    return min(results.facts["context_length"] or _CONTEXT, _CONTEXT)


def _values(results: Results, config: dict[str, Any]) -> dict[str, Any]:
    """What the publisher's texts may name, as `texts.VARIABLES` lists it."""
    card, facts = config["card"], results.facts
    return {
        "model": config["model"],
        "title": _title(results, config),
        "base_model": ", ".join(listed(card.get("base_model"))) or facts["name"] or config["model"],
        "license": card.get("license") or facts["licence"] or "",
        "source": config["source"]["file"],
        "architecture": facts["architecture"],
        "parameters": facts["parameters"],
        "files": len(results.quants),
        "largest": results.quants[0].name,
        "smallest": results.quants[-1].name,
        "recommended": _pick(results).name,
    }


def _title(results: Results, config: dict[str, Any]) -> str:
    if config["card"].get("title"):
        return str(config["card"]["title"])
    base = listed(config["card"].get("base_model"))
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
    lines = [
        f"{part['sha256']}  {part['file']}"
        for quant in results.quants
        for part in quant.parts or [{"sha256": quant.sha256, "file": quant.file}]
    ]
    return "\n".join([*lines, f"{results.facts['sha256']}  {config['source']['file']}"])


def hub_fields(card: dict[str, Any]) -> dict[str, Any]:
    """The Hub's fields of the front matter that the config gives as they are."""
    found = {field: card[field] for field in _HUB_FIELDS if card.get(field)}
    if card.get("base_model"):
        found |= {"base_model": card["base_model"], "base_model_relation": "quantized"}
    return found


def listed(value: str | list[str] | None) -> list[str]:
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
