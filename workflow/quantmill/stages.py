"""The stages: what each does, reads and writes, and the version of its output.

Raise a version when the meaning of that stage's output changes. It is part of every `spec` and of every key
of the store, so that whatever was made under the old meaning is made again. The golden tests fail when an
output changes and its version does not. `python -m quantmill` prints this table; the rules, the specs and the
docs read it.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Stage(NamedTuple):
    """A command of the workflow: `python -m quantmill NAME ...` runs the module `quantmill.NAME`.

    `reads` and `writes` are for people; paths are relative to `results/<model>/`. `threads`, `store`,
    `memory`: the command takes `--threads`, `--store` with `--store-max`, and its job asks for memory, which
    is passed as `--memory`. `evaluates`: it loads a model, on devices as the run wants; `--name` says which
    model of the config it is. `key` is the stage's name in specs and in keys of the store, where it is not
    `name`: the module was renamed, and another key would make finished files stale.
    """

    name: str
    version: int
    what: str
    reads: str
    writes: str
    threads: bool = False
    store: bool = False
    memory: bool = True
    evaluates: bool = False
    key: str = ""


_STAGES: Final = (
    Stage(
        "model.fetch",
        version=1,
        what="download the source",
        reads="a Hugging Face repository, at a commit",
        writes="source/<file>, source/<file>.json",
        memory=False,
    ),
    Stage(
        "checkpoint.convert",
        version=1,
        what="convert a checkpoint to GGUF",
        reads="a Hugging Face checkpoint, the converter's environment",
        writes="source/<model>.gguf, source/<model>.gguf.json",
    ),
    Stage(
        "check.source",
        version=1,
        what="check that llama.cpp loads the source",
        reads="the source's header",
        writes="check.json",
        evaluates=True,
    ),
    Stage(
        "model.manifest",
        version=2,
        what="list the source's tensors",
        reads="the source",
        writes="manifest.tsv, model.json",
        threads=True,
    ),
    Stage(
        "corpus.build",
        version=2,
        what="cut text into chunks of tokens",
        reads="parquet and text files, the source's vocabulary",
        writes="corpus/<corpus>.parquet, corpus/<corpus>.json",
    ),
    Stage(
        "measure.imatrix",
        version=1,
        what="measure the importance matrix",
        reads="the source, a corpus",
        writes="imatrix.gguf, imatrix.dat, imatrix.json",
        threads=True,
        store=True,
        evaluates=True,
    ),
    Stage(
        "measure.moments",
        version=1,
        what="measure the second moments of inputs",
        reads="the source, a corpus",
        writes="moments.json",
        threads=True,
        store=True,
        evaluates=True,
    ),
    Stage(
        "measure.cross",
        version=1,
        what="measure what quantized weights do to the inputs of others",
        reads="the source, a file of rounding gptq and its report, moments.json and its corpus",
        writes="cross/<recipe>.json",
        threads=True,
        store=True,
        evaluates=True,
    ),
    Stage(
        "imatrix.imported",
        version=1,
        what="import a published importance matrix",
        reads="the source's header, an imatrix (GGUF or .dat)",
        writes="imatrix.gguf, imatrix.dat, imatrix.json",
    ),
    Stage(
        "sensitivity.measure",
        version=2,
        what="measure the sensitivity of each tensor",
        reads="the source, manifest.tsv, the imatrix, a corpus; for gptq moments.json and its corpus",
        writes="sensitivity.tsv, sensitivity.json",
        threads=True,
        store=True,
        evaluates=True,
    ),
    Stage(
        "sensitivity.imported",
        version=2,
        what="import published sensitivities",
        reads="the source's header, two CSV files of GGUF-Tool-Suite",
        writes="sensitivity.tsv, sensitivity.json",
        key="budget.imported",
    ),
    Stage(
        "budget.speed",
        version=1,
        what="measure the speed of each type on this machine",
        reads="the source",
        writes="speeds.json",
        threads=True,
        store=True,
        evaluates=True,
    ),
    Stage(
        "budget.feasibility",
        version=1,
        what="check that a size can be met",
        reads="the source's header; for a floor of the speed speeds.json",
        writes="reach/<recipe>.json",
        key="budget.reach",
    ),
    Stage(
        "budget.allocate",
        version=3,
        what="choose the types of a size-targeted recipe",
        reads="the source's header, sensitivity.tsv; for a floor of the speed speeds.json",
        writes="recipes/<recipe>.yaml, recipes/<recipe>.json",
    ),
    Stage(
        "recipe.plan",
        version=5,
        what="render a recipe from its template, and resolve it to a type for each tensor",
        reads="a template, or the recipe of a budget; the source's header; where the recipe asks for them: "
        "imatrix, scores, sensitivity.tsv, a file to import",
        writes="recipes/<recipe>.yaml, plans/<recipe>.tsv, plans/<recipe>.json",
    ),
    Stage(
        "model.memory",
        version=1,
        what="tabulate the memory of contexts",
        reads="the source's header, the plans' reports",
        writes="memory.json",
    ),
    Stage(
        "quantize.write",
        version=4,
        what="quantize a file",
        reads="the source, manifest.tsv, a plan, the imatrix; for gptq moments.json and its corpus; "
        "for gptaq cross/<recipe>.json as well",
        writes="gguf/<model>-<recipe>.gguf (split: a folder), gguf/<model>-<recipe>.json",
        threads=True,
        store=True,
    ),
    Stage(
        "check.file",
        version=2,
        what="check a finished file",
        reads="a file and its report",
        writes="checks/<recipe>.json",
        threads=True,
        evaluates=True,
    ),
    Stage(
        "measure.divergence",
        version=1,
        what="measure the KL divergence from the source",
        reads="a file, the source, a corpus",
        writes="bench/<recipe>/kld.json, nearest/<recipe>.kld.json",
        threads=True,
        store=True,
        evaluates=True,
    ),
    Stage(
        "measure.perplexity",
        version=1,
        what="measure the perplexity",
        reads="a file, a corpus",
        writes="bench/<recipe>/perplexity.json",
        threads=True,
        store=True,
        evaluates=True,
    ),
    Stage(
        "measure.embeddings",
        version=1,
        what="compare embeddings, or a reranker's scores, with the source's",
        reads="a file, the source, a corpus",
        writes="bench/<recipe>/embeddings.json",
        threads=True,
        store=True,
        evaluates=True,
    ),
    Stage(
        "measure.projector",
        version=1,
        what="compare a projector's vectors of pictures and sounds with the source's",
        reads="a projector, the source, pictures and sounds",
        writes="bench/<recipe>/projector.json",
        threads=True,
        store=True,
        evaluates=True,
    ),
    Stage(
        "measure.draft",
        version=1,
        what="measure how many tokens of the draft head the model accepts",
        reads="a file, a corpus",
        writes="bench/<recipe>/draft.json",
        threads=True,
        store=True,
        evaluates=True,
    ),
    Stage(
        "measure.speed",
        version=1,
        what="measure the speed",
        reads="a file",
        writes="bench/<recipe>/speed.json",
        threads=True,
        evaluates=True,
    ),
    Stage(
        "serve.measure",
        version=1,
        what="measure the speed behind a server",
        reads="a file, a llama-server where one is given",
        writes="bench/<recipe>/served.json",
        threads=True,
        evaluates=True,
    ),
    Stage(
        "evaluate.humaneval",
        version=2,
        what="generate code and run its tests",
        reads="a file, problems (JSONL)",
        writes="bench/<recipe>/humaneval.json, bench/<recipe>/humaneval.jsonl",
        threads=True,
        store=True,
        evaluates=True,
    ),
    Stage(
        "evaluate.tasks",
        version=2,
        what="evaluate tasks of lm-eval",
        reads="a file, task definitions (YAML)",
        writes="bench/<recipe>/tasks.json",
        threads=True,
        store=True,
        evaluates=True,
    ),
    Stage(
        "card.maps",
        version=2,
        what="draw the heat map of the sensitivity",
        reads="sensitivity.tsv",
        writes="card/plots/sensitivity.svg, card/plots/sensitivity-dark.svg",
    ),
    Stage(
        "card.write",
        version=9,
        what="write the model card",
        reads="all of the above but the GGUFs; other models' results or CSV",
        writes="card/README.md, card/index.html, card/modelfiles/Modelfile.<recipe>, card/withheld.json, "
        "card/plots/*.svg",
    ),
    Stage(
        "checkpoint.calibrate",
        version=1,
        what="measure the largest inputs of the MLP weights",
        reads="the GGUF of a checkpoint, a corpus",
        writes="activations.json",
        threads=True,
        store=True,
        evaluates=True,
    ),
    Stage(
        "checkpoint.export",
        version=3,
        what="write an NVFP4 checkpoint",
        reads="a Hugging Face checkpoint; activations.json for W4A4",
        writes="checkpoint/<model>-<recipe>/, checkpoint/<model>-<recipe>.json",
        threads=True,
    ),
    Stage(
        "card.checkpoint",
        version=1,
        what="write the card of a checkpoint",
        reads="checkpoint/<model>-<recipe>.json",
        writes="checkpoint/<model>-<recipe>/README.md",
    ),
    Stage(
        "publish.split",
        version=1,
        what="name the parts of large files in the repository",
        reads="the GGUFs and their reports",
        writes="parts.json",
        key="publish.cut",
    ),
    Stage(
        "proof.lock",
        version=1,
        what="lock what the files are made from",
        reads="the reports and tables of everything that the GGUFs are made from, and theirs",
        writes="lock.json, statements/",
    ),
    Stage(
        "proof.verify",
        version=1,
        what="make the files again from the lock, and compare",
        reads="lock.json, the GGUFs, and what quantize.write reads",
        writes="verify.json",
        threads=True,
        store=True,
    ),
    Stage(
        "proof.sign",
        version=1,
        what="sign the lock",
        reads="lock.json, an ssh key",
        writes="lock.json.sig",
        memory=False,
    ),
    Stage(
        "publish.upload",
        version=1,
        what="upload the files, or list what would be uploaded",
        reads="the card, the GGUFs, the lock, what `publish: include` names",
        writes="a table; once confirmed, a commit in a repository of the hub",
        memory=False,
    ),
)

STAGES: Final[dict[str, Stage]] = {stage.name: stage for stage in _STAGES}
"""All stages by name, in the order of the workflow."""

# What the store keeps under a name of its own, inside several stages.
_UNITS: Final = dict.fromkeys(("measure.reference", "sensitivity.errors", "sensitivity.probe"), 1)

VERSIONS: Final[dict[str, int]] = {stage.key or stage.name: stage.version for stage in _STAGES} | _UNITS
"""The versions by the names in specs and in keys of the store."""


def key(stage: str) -> str:
    """The name of a stage in specs and in keys of the store."""
    known = STAGES.get(stage)
    return known.key or known.name if known else stage
