# What the rules share: the user's config, the files of each model, the names that wildcards may take.
import json
import os
import re
import shlex
import sys
import time
import tomllib
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

LIBRARY = os.path.join(workflow.basedir, "workflow")
sys.path.insert(0, LIBRARY)

from quantmill import environment
from quantmill.errors import QuantmillError


@contextmanager
def refusing():
    """End Snakemake with one line where the input is bad."""
    try:
        yield
    except QuantmillError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


# Before anything is imported that a PYTHONPATH may have replaced.
with refusing():
    environment.check_python_path(os.getenv("PYTHONPATH", ""))

from quantmill import machine, spec
from quantmill.budget import candidates
from quantmill.check import kind
from quantmill.config import file as user
from quantmill.card import template, texts
from quantmill.engine import library
from quantmill.evaluate import problems
from quantmill.config.source import PackageSource, calibrated, exports as exports_of, of_ggufs
from quantmill.judge import same_size
from quantmill.formats import imatrix
from quantmill.recipe import interchange
from quantmill.recipe.render import engine_of as engine_of_template
from quantmill.recipe.render import read_template
from quantmill.recipe.rules import known_type
from quantmill.config.refusal import check_duplicates, check_input


def cached(find):
    """Cache a function of names, and let bad input that it meets end the run with one line."""

    @cache
    def wrapped(*names):
        with refusing():
            return find(*names)

    return wrapped


def told(kind):
    """The lines of this run's logs that begin with `kind`, each once, and the logs that have it."""
    found = {}
    for log in sorted([*RESULTS.glob("*/logs/**/*.log"), *RESULTS.glob("logs/*.log")]):
        if log.stat().st_mtime >= STARTED:
            for line in log.read_text("utf-8", errors="replace").splitlines():
                if line.startswith(f"{kind}: "):
                    found.setdefault(line, []).append(str(log))
    return found


def tell_errors():
    """Repeat, at the end of a run that failed, why its stages did."""
    for line in told("error"):
        print(line, file=sys.stderr)


def tell_warnings():
    """Repeat, at the end of a run, what its stages warned of, and where."""
    for line, logs in told("warning").items():
        more = f" and {len(logs) - 1} more" if len(logs) > 1 else ""
        print(f"{line} ({logs[0]}{more})", file=sys.stderr)


# The user's own templates come before the workflow's.
TEMPLATES = [Path("recipes"), Path(workflow.basedir) / "recipes"]

# `--config confirm=yes` lets `publish` upload. It is said anew each time: in a file it is an unknown field.
SAID = "confirm" in workflow.config_settings.config
CONFIRMED = SAID and str(config.pop("confirm")).lower() in ("yes", "true")

with refusing():
    config_files = [os.path.relpath(file) for file in workflow.configfiles]
    config_file = " + ".join(config_files) or "--config"
    for file in config_files:
        check_duplicates(Path(file))
    given = user.parse(config, config_file)
    user.check_files(given, config_file, TEMPLATES)
    # All else here is about GGUFs: those given, and those that checkpoints are converted to, if only
    # (then without a recipe) to see what enters their weights.
    cfg = of_ggufs(given)
    EXPORTED = exports_of(given)
    CHECKPOINTS = {
        name: model.source
        for name, model in given.models.items()
        if isinstance(model.source, user.CheckpointSource)
    }
    # What a model's kind cannot have is refused here where its file is there, else by its check.
    ASKED = {model: [kind.Asked(*one) for one in cfg.asked_of(model)] for model in cfg.models}
    UNCHECKED = {
        model: asked
        for model, asked in ASKED.items()
        if not kind.refuse_early(cfg.source_files(model)[0], model, asked, config_file)
    }
    for model in cfg.models:
        if (asked := cfg.bench_of(model).humaneval) is not None:
            problems.read(asked.file())
        for number, name in enumerate(cfg.probes_of(model).types if cfg.probes_of(model) else []):
            known_type(name, f"sensitivity.types[{number}]", config_file)
        for field, (where, words) in cfg.models[model].card.words.items():
            texts.check(words, f"{config_file}: models.{model}.card.{where}" if where == field else where)
        for rival in cfg.models[model].card.iso_disk:
            if rival.model is None:
                same_size.read_competitor(Path(rival.results or rival.csv))
            elif rival.model not in cfg.models:
                where = f"{config_file}: models.{model}.card.iso_disk"
                raise QuantmillError(f"no model {rival.model}", where, f"there are {', '.join(cfg.models)}")

STARTED = time.time()
RESULTS = Path(cfg.results)
RESULTS_WORD = shlex.quote(str(RESULTS))  # as a word of a command line
STORE = cfg.store_path
SPECS = RESULTS / ".specs"  # those too long for a command line
MEMO = spec.DigestMemo(STORE / "digests")
# Stages run in this very interpreter's environment and need no installation. The
# store reaches them here too: in a rule's command or params, a larger cap or
# another place would make everything stale.
os.environ.update(
    environment.of_stages(LIBRARY),
    QUANTMILL_STORE=str(STORE),
    QUANTMILL_SPECS=str(SPECS),
    QUANTMILL_CONVERTER=os.getenv("QUANTMILL_CONVERTER") or os.path.join(workflow.basedir, ".converter"),
    QUANTMILL_STORE_MAX=str(cfg.store.max_bytes),
    # Nor is a check stale where something else is asked of the model: it is the same file.
    QUANTMILL_ASKED=json.dumps({"file": config_file, "models": UNCHECKED}),
)
# One native stage at a time, on all cores: a measured speed must not be shared,
# and the kernels' threads would only fight. Never part of a spec. Snakemake's `all` knows
# affinity, but no cgroup's quota: on more threads than that ggml's would wait for each other.
CORES = workflow.resource_settings.cores or os.cpu_count()
if workflow.resource_settings.cores:  # jobs run here, and not on a cluster's nodes
    CORES = min(CORES, machine.cores())
    workflow.register_resource("_cores", CORES)
# Every rule's command runs under a watcher, which says in one line why where a signal ends it.
shell.prefix("set -u; exec python -m quantmill.watch ")
# The rows of the bench that are the source itself, and their engines.
SOURCES = {"source": "mainline", "source-ik": "ik"}
CHECKPOINT_TEMPLATE = os.path.join(LIBRARY, "quantmill", "card", "checkpoint.md.j2")


# --- files -------------------------------------------------------------------


def of(model, name):
    """A result of a model."""
    return str(RESULTS / model / name)


@cache
def source_of(model):
    """The source's files, all parts of a split one; relative where they lie below the working directory."""
    files = [os.path.abspath(file) for file in cfg.source_files(model)]
    here = os.path.join(os.getcwd(), "")
    return [os.path.relpath(f) if f.startswith(here) and f[len(here)] != "-" else f for f in files]


def imatrix_of(model):
    """The model's imatrix, or nothing."""
    return [of(model, "imatrix.gguf")] if cfg.imatrix_of(model) else []


def corpus_sources_of(corpus):
    """The files of a corpus."""
    return [source.path for source in cfg.corpora[corpus].sources]


def disjoint_from(model, corpus):
    """The model's corpora before this one, which it must share no row with: what is tuned, then measured."""
    used = list(cfg.corpora_of(model))
    return used[: used.index(corpus)] if corpus in used else []


@cached
def recipe_of(model, recipe):
    """A recipe of the model."""
    recipes = cfg.recipes_of(model)
    if recipe not in recipes:
        raise QuantmillError(
            f"{model} has no recipe {recipe}",
            config_file,
            f"it has {', '.join(recipes)}",
        )
    return recipes[recipe]


@cached
def calibration_of(model):
    """The model's imatrix section, where it is measured here."""
    chunks = cfg.calibration_of(model)
    if chunks is None:
        raise QuantmillError(f"{model} has no imatrix", config_file, "give it one under imatrix")
    return chunks


def imported_imatrix_of(model):
    """The imatrix that somebody published for the model."""
    return cfg.imatrix_of(model).file


@cached
def probes_of(model):
    """The model's sensitivity section, where it is measured here."""
    probes = cfg.probes_of(model)
    if probes is None:
        raise QuantmillError(f"{model} has no sensitivity", config_file, "give it one under sensitivity")
    return probes


@cached
def measured_on(model, what):
    """The chunks that `kld` or `perplexity` of the model is measured on."""
    chunks = cfg.bench_of(model).chunked.get(what)
    if chunks is None:
        raise QuantmillError(f"{model} has no {what}", config_file, "give it one under bench")
    return chunks


def servers_of(model):
    """The user's own server, or none."""
    served = cfg.bench_of(model).served
    return [served.server] if served and served.server else []


@cached
def evaluated_by_code(model):
    """The model's settings of HumanEval."""
    wanted = cfg.bench_of(model).humaneval
    if wanted is None:
        raise QuantmillError(f"{model} has no humaneval", config_file, "give it one under bench")
    return wanted


@cached
def evaluated_by_tasks(model):
    """The model's tasks of lm-eval."""
    wanted = cfg.bench_of(model).tasks
    if wanted is None:
        raise QuantmillError(f"{model} has no tasks", config_file, "give it some under bench")
    return wanted


def files_of_tasks(model):
    """The model's own definitions of tasks and their data: their names in the folder, and their paths."""
    folder = evaluated_by_tasks(model).include
    found = sorted(path for path in Path(folder).rglob("*") if path.is_file()) if folder else []
    return {
        str(path.relative_to(folder)): str(path)
        for path in found
        if not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    }


def fitted(model, recipe):
    """Whether the recipe is allocated to a budget; all others are rendered from a template."""
    return isinstance(recipe_of(model, recipe), user.BudgetRecipe)


def allocation_of(model, recipe):
    """The report of a recipe that is allocated to a budget; or none."""
    return [of(model, f"recipes/{recipe}.json")] if fitted(model, recipe) else []


def reach_of(model, recipe):
    """What a budget can reach, where the sensitivity is yet to be measured: refused before it is."""
    return [] if model in IMPORTED else [of(model, f"reach/{recipe}.json")]


def place_of(model, recipe):
    """A recipe's place in the user's file, for errors."""
    own = f"models.{model}." if cfg.models[model].recipes else ""
    return f"{config_file}: {own}recipes[{list(cfg.recipes_of(model)).index(recipe)}]"


def template_of(model, recipe):
    """A recipe's template."""
    return str(user.template_file(recipe_of(model, recipe).template, TEMPLATES))


@cached
def engine_of(model, row):
    """The engine that makes a recipe's file and measures it; `source-ik` is the source in the engine ik."""
    if row in SOURCES:
        return SOURCES[row]
    if fitted(model, row):
        return recipe_of(model, row).engine
    recipe = recipe_of(model, row)
    imported = interchange.engine_of(Path(recipe.file), recipe.form) if recipe.file else None
    template = template_of(model, row)
    return engine_of_template(read_template(Path(template)), recipe.parameters, imported, template)


@cache
def sources_of(model):
    """The rows that are the source itself: one for each engine that a file is measured in, as its divergence
    from the source must be that of its weights alone.
    """
    used = {"mainline", *(engine_of(model, recipe) for recipe in cfg.recipes_of(model))}
    return [row for row, engine in SOURCES.items() if engine in used]


def rows_of(model):
    """The rows of the bench."""
    return [*sources_of(model), *cfg.recipes_of(model)]


def served_by(model, row):
    """Whether llama.cpp can load a row's file, and so whatever generates with it."""
    return engine_of(model, row) == "mainline"


def source_beside(model, row):
    """The source's row in the engine of a row."""
    return next(source for source, engine in SOURCES.items() if engine == engine_of(model, row))


def ranks_by(source, model, recipe, files):
    """The files, where the recipe ranks layers by the source (`imatrix`, `sensitivity`); else none."""
    return files if source in recipe_of(model, recipe).weights else []


def scores_of(model, recipe):
    """The user's own scores of layers for a recipe; or none."""
    importance = recipe_of(model, recipe).importance
    return [importance.scores.path] if importance and importance.scores else []


def split_of(model, recipe):
    """The most bytes of a file of the recipe, where it is split; else None."""
    split = cfg.split_of(recipe_of(model, recipe))
    return split and split.max_bytes


def gguf_of(model, recipe):
    """A recipe's GGUF; its folder where it is split, for how many files there are only its plan knows."""
    return of(model, f"gguf/{model}-{recipe}" + ("" if split_of(model, recipe) else ".gguf"))


def imported_by(model, recipe):
    """The file that a recipe imports; or none."""
    return [file for file in [recipe_of(model, recipe).file] if file is not None]


# --- inputs ------------------------------------------------------------------
# Snakemake compares files over 1 MB by their times alone, so the large ones are
# ancient: touching or copying them does nothing. Each comes with a small file of
# the same job that is not: where all files between two jobs are ancient, the
# second is not even asked whether its params changed once the first is due.


def from_source(model):
    """The source's files, and what was noted where they were fetched or converted."""
    made = isinstance(cfg.models[model].source, user.HubSource | user.CheckpointSource)
    return [*ancient(source_of(model)), *(f"{file}.json" for file in source_of(model) if made)]


def corpora_of(model, corpora):
    """Corpora as built for the model."""
    return ancient([of(model, f"corpus/{corpus}.parquet") for corpus in corpora])


def reports_of(model, corpora):
    """The reports of corpora: small and never ancient, so that a corpus built anew is seen."""
    return [of(model, f"corpus/{corpus}.json") for corpus in corpora]


def imatrix_report_of(model):
    """The report of the imatrix, or nothing; as with corpora."""
    return [of(model, "imatrix.json") for _ in imatrix_of(model)]


def from_gguf(model, row):
    """The GGUF that a row of the bench is about: a recipe's, or the source itself."""
    return from_source(model) if row in SOURCES else ancient([gguf_of(model, row)])


def facts_of(model, row):
    """The JSON file with the sha256 of that GGUF."""
    return of(model, "model.json" if row in SOURCES else f"gguf/{model}-{row}.json")


def evaluated_by(model, row):
    """The divergence of a file, which its perplexity comes after where both are of one corpus: one
    evaluation gives both, and the second finds it in the store. It is not ancient, though nothing of
    it enters the perplexity: else, where both are due, Snakemake would leave the second out.
    """
    bench = cfg.bench_of(model)
    same = bench.kld and bench.perplexity and bench.kld.corpus == bench.perplexity.corpus
    return [of(model, f"bench/{row}/kld.json")] if same else []


def floor_of(model, row):
    """The source's divergence from itself, which that of a file comes after: it makes the predictions."""
    return [] if row in SOURCES else [of(model, f"bench/{source_beside(model, row)}/kld.json")]


# --- targets -----------------------------------------------------------------


def bench_of(model, row):
    """The measurements of one file."""
    bench = cfg.bench_of(model)
    names = (
        "kld",
        "perplexity",
        "speed",
        *(("served", "humaneval", "tasks") if served_by(model, row) else ()),
    )
    return [of(model, f"bench/{row}/{name}.json") for name in names if getattr(bench, name)]


def imatrices_of(model):
    return [of(model, f"imatrix.{kind}") for kind in ("gguf", "dat", "json") if cfg.imatrix_of(model)]


def sensitivities_of(model):
    return [of(model, f"sensitivity.{kind}") for kind in ("tsv", "json") if cfg.sensitivity_of(model)]


def plans_of(model):
    recipes = cfg.recipes_of(model)
    tables = [of(model, f"plans/{recipe}.{kind}") for recipe in recipes for kind in ("tsv", "json")]
    return [*tables, of(model, "memory.json")]


def checks_of(model):
    """What stands before all else that is made of a model: a word on whether it can be."""
    return [of(model, "check.json")]


def quants_of(model):
    return [
        file
        for recipe in cfg.recipes_of(model)
        for file in (gguf_of(model, recipe), of(model, f"gguf/{model}-{recipe}.json"))
    ]


def cards_of(model):
    plots = ["bits", "size", *("sensitivity" for _ in sensitivities_of(model)[:1])]
    drawn = [of(model, f"card/plots/{plot}{theme}.svg") for plot in plots for theme in ("", "-dark")]
    return [*(of(model, f"card/{name}") for name in ("README.md", "index.html", "withheld.json")), *drawn]


def rival_files(rival):
    """What the card reads of another model on the same disk: its facts and what was measured, or a table."""
    if rival.csv is not None:
        return [rival.csv]
    if rival.results is not None:
        found = ("gguf/*.json", "bench/*/kld.json", "bench/*/humaneval.json")
        return sorted(str(path) for pattern in found for path in Path(rival.results).glob(pattern))
    recipes = cfg.recipes_of(rival.model)
    facts = [of(rival.model, f"gguf/{rival.model}-{recipe}.json") for recipe in recipes]
    return facts + [file for recipe in recipes for file in bench_of(rival.model, recipe)]


def rivals_of(model):
    """All of them, for the rule's input."""
    return [file for rival in cfg.models[model].card.iso_disk for file in rival_files(rival)]


def rival_path(rival):
    """Where the card reads it: a table, or the folder of a model's results."""
    return rival.csv or rival.results or str(RESULTS / rival.model)


@cache
def described_in(model):
    """All that a card is written from, the GGUFs' own facts instead of the GGUFs."""
    recipes, corpora = cfg.recipes_of(model), cfg.corpora_of(model)
    return [
        *(of(model, name) for name in ("check.json", "manifest.tsv", "model.json")),
        *(of(model, f"corpus/{corpus}.json") for corpus in corpora),
        *(of(model, "imatrix.json") for _ in imatrix_of(model)),
        *(of(model, f"recipes/{recipe}.yaml") for recipe in recipes),
        *(report for recipe in recipes for report in allocation_of(model, recipe)),
        *sensitivities_of(model)[1:],
        *plans_of(model),
        *(of(model, f"gguf/{model}-{recipe}.json") for recipe in recipes),
        *(of(model, "parts.json") for _ in [cfg.repository_of(model)] if _),
    ]


def measured_in(model):
    """The measurements of a model's files, the source first."""
    return [file for row in rows_of(model) for file in bench_of(model, row)]


def samples_of(model):
    """The answers to HumanEval of a model's files."""
    rows = rows_of(model) if cfg.bench_of(model).humaneval else ()
    return [of(model, f"bench/{row}/humaneval.jsonl") for row in rows if served_by(model, row)]


def results_of(model):
    """All that is made of a model, so that whatever is deleted is made again."""
    corpora = [of(model, f"corpus/{corpus}.parquet") for corpus in cfg.corpora_of(model)]
    kept = model in CONVERTED and CHECKPOINTS[model].keep
    made = [
        source_of(model) if kept else [],
        described_in(model),
        corpora,
        imatrices_of(model),
        sensitivities_of(model),
        quants_of(model),
        measured_in(model),
        samples_of(model),
    ]
    return [*dict.fromkeys(sum(made, [])), *cards_of(model)]


def checkpoints_of(model):
    """The exports of a checkpoint: of each folder the files that all have, and its report; what was
    calibrated for them.
    """
    seen = {file for recipe in EXPORTED[model] for file in activations_of(model, recipe)}
    folders = [f"checkpoint/{model}-{recipe}" for recipe in EXPORTED[model]]
    files = ("{}/config.json", "{}/README.md", "{}.json")
    return [*seen, *(of(model, file.format(folder)) for folder in folders for file in files)]


def activations_of(model, recipe):
    """The largest inputs of a checkpoint's weights, where activations are quantized as well; or none."""
    return [of(model, "activations.json")] if calibrated(EXPORTED[model][recipe]) else []


def exports():
    """The exports of every checkpoint."""
    return [file for model in EXPORTED for file in checkpoints_of(model)]


def every(files_of):
    """The files of every model that GGUFs are made of."""
    return [file for model in filter(cfg.recipes_of, cfg.models) for file in files_of(model)]


def megabytes(model, factor=1.0, more=1000):
    """Memory for a stage: `factor` times the source, and `more`; in MB."""
    files = [Path(file) for file in source_of(model)]
    return int(sum(f.stat().st_size for f in files if f.exists()) * factor / 1e6) + more


# --- names -------------------------------------------------------------------

RECIPES = {recipe for model in cfg.models for recipe in cfg.recipes_of(model)}
CONVERTED = {model for model in cfg.models if model in CHECKPOINTS}
GIVEN_IMATRIX = {m for m in cfg.models if isinstance(cfg.imatrix_of(m), user.ImportedImatrix)}
IMPORTED = {model for model in cfg.models if isinstance(cfg.sensitivity_of(model), user.ImportedSensitivity)}
FITTED = {recipe for model in cfg.models for recipe in cfg.recipes_of(model) if fitted(model, recipe)}
PUBLISHED = [model for model in filter(cfg.recipes_of, cfg.models) if cfg.repository_of(model)]
HUB = {model for model in cfg.models if isinstance(cfg.models[model].source, user.HubSource)}
FETCHED = {os.path.relpath(file, RESULTS / model / "source") for model in HUB for file in source_of(model)}
SPLIT = {recipe for model in cfg.models for recipe in cfg.recipes_of(model) if split_of(model, recipe)}


def names(known):
    """The regular expression of the known names, and of no other."""
    return "|".join(map(re.escape, sorted(known))) or r"(?!)"


wildcard_constraints:
    model=names(cfg.models),
    corpus=names(cfg.corpora),
    recipe=names(RECIPES),
    row=names(RECIPES | SOURCES.keys()),
    file=names(FETCHED),
