"""The start of a run: what the rules need of Snakemake and of the machine, in one place.

Imports little: a PYTHONPATH that brings other packages is refused before any of them is imported.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from quantmill import environment, machine, offload, parts
from quantmill.flow.rules import memory_by_rounding, memory_of, refusing, spec_of

if TYPE_CHECKING:
    from quantmill.flow.card_specs import CardSpecs
    from quantmill.flow.estimate import Estimate
    from quantmill.flow.inputs import Inputs
    from quantmill.flow.logs import Logs
    from quantmill.flow.project import Project
    from quantmill.flow.specs import Specs
    from quantmill.flow.targets import Targets


class Flow(NamedTuple):
    """What the rules are made with."""

    project: Project
    inputs: Inputs
    targets: Targets
    specs: Specs
    card_specs: CardSpecs
    logs: Logs
    estimate: Estimate
    cores: int
    evaluation_cores: Callable[[Any], int]
    gpus: Callable[[Any], int]
    spec_of: Callable[[Callable[..., str]], Callable[[Any], str]]
    memory: Callable[[float, int], Callable[[Any], int]]
    imatrix_memory: Callable[[Any], int]
    quantize_memory: Callable[[Any], int]
    sweep: Callable[[], None]


def check_config(file: str) -> None:
    """Refuse a config file that is no sound YAML in one line, before Snakemake reads it in its own way."""
    with refusing():
        environment.check_python_path(os.getenv("PYTHONPATH", ""))

        from quantmill.config.refusal import check_yaml

        if Path(file).exists():
            check_yaml(Path(file))


def begin(workflow: Any, config: dict[str, Any], ancient: Callable[[list[str]], list[str]]) -> Flow:
    """Check the config and the environment; `workflow`, `config` and `ancient` are Snakemake's.

    Bad input ends the run with one line.
    """
    with refusing():
        environment.check_python_path(os.getenv("PYTHONPATH", ""))

        from quantmill.flow import cap
        from quantmill.flow.card_specs import CardSpecs
        from quantmill.flow.digests import Digests
        from quantmill.flow.estimate import Estimate
        from quantmill.flow.inputs import Inputs
        from quantmill.flow.logs import Logs
        from quantmill.flow.paths import Paths
        from quantmill.flow.project import Project
        from quantmill.flow.specs import Specs
        from quantmill.flow.targets import Targets

        confirmed = _confirmed(workflow, config)
        project = Project(config, [str(file) for file in workflow.configfiles], confirmed=confirmed)
        if workflow.is_main_process and (line := cap.warning(project)) is not None:
            print(f"warning: {line}", file=sys.stderr)
    inputs = Inputs(Paths(project), ancient)
    targets = Targets(inputs)
    cores = _cores(workflow)
    models = partial(_requested, workflow, project)  # not known while the workflow is read
    specs = Specs(Digests(project, local=bool(workflow.local_exec), models=models, threads=cores))
    os.environ.update(_environment(project))
    memory = partial(memory_of, project.source_files)
    estimate = Estimate(targets, cores, workflow)
    atexit.register(estimate.at_exit)
    return Flow(
        project,
        inputs,
        targets,
        specs,
        CardSpecs(specs, targets),
        Logs(project.results),
        estimate,
        cores,
        partial(_evaluation_cores, project, cores, _resource(workflow, "gpu")),
        partial(_gpus, project),
        partial(spec_of, folder=project.specs),
        memory,
        memory_of(lambda model: [project.imported_imatrix(model).file], 4, 1000),
        memory_by_rounding(project.fed_back, 4000, memory(0.3, 8000)),
        partial(parts.sweep_below, project.results),
    )


def _confirmed(workflow: Any, config: dict[str, Any]) -> bool:
    """Whether `--config confirm=yes` lets `publish` upload.

    It is given anew each time: in a file it is an unknown field.
    """
    given = workflow.config_settings.config
    if "confirm" not in given:
        return False
    config.pop("confirm", None)
    return str(given["confirm"]).lower() in ("yes", "true")


def _environment(project: Project) -> dict[str, str]:
    """The variables that the commands of stages read.

    Stages run in this very interpreter's environment and need no installation.
    The store reaches them here too: in params, a larger cap or another place
    would make everything stale. The same holds for what a check looks at: it
    changes no output.
    """
    from quantmill.flow.project import ROOT

    library = str(Path(__file__).parents[2])
    return environment.of_stages(library) | {
        "QUANTMILL_STORE": str(project.store),
        "QUANTMILL_SPECS": str(project.specs),
        "QUANTMILL_CONVERTER": os.getenv("QUANTMILL_CONVERTER") or str(ROOT / ".converter"),
        offload.VARIABLE: json.dumps(_offload(project)),
        "QUANTMILL_STORE_MAX": str(project.config.store.max_bytes),
        "QUANTMILL_EVALUATIONS": json.dumps({"file": project.file, "models": project.unchecked}),
    }


def _offload(project: Project) -> dict[str, dict[str, Any]]:
    """How each model is spread over devices, of those for which the user wants anything."""
    models = project.given.models
    settings = {model: project.given.offload_of(model).settings() for model in models}
    return {model: wanted for model, wanted in settings.items() if wanted}


def _resource(workflow: Any, resource: str) -> int:
    """What `--resources` of the command line or the profile gives of a resource; 0 where it gives none."""
    given = workflow.resource_settings.resources
    return int(given[resource]) if resource in given else 0


def _gpus(project: Project, wildcards: Any) -> int:
    """The devices that a job which evaluates a model takes of Snakemake's resource `gpu`."""
    return project.given.offload_of(wildcards.model).gpus or 0


def _evaluation_cores(project: Project, cores: int, gpus: int, wildcards: Any) -> int:
    """The cores of such a job: all, or its share where a run has several GPUs and a job takes some."""
    own = _gpus(project, wildcards)
    return max(1, cores // max(1, gpus // own)) if own else cores


def _requested(workflow: Any, project: Project) -> list[str]:
    """The models that a run is about: all, unless it is to make files of some alone."""
    settings = workflow.dag_settings
    if settings.target_jobs:  # of a single job, which asks for its own
        return []
    models = list(project.given.models)
    folders = {f"{project.results / model}/": model for model in models}
    asked = [
        {model for folder, model in folders.items() if os.path.normpath(target).startswith(folder)}
        for target in settings.targets
    ]
    return [model for model in models if not asked or set() in asked or model in set().union(*asked)]


def _cores(workflow: Any) -> int:
    """The cores that a stage gets: all of them, one native stage at a time.

    A measured speed must not be shared, and the kernels' threads would only
    fight. Never part of a spec. Snakemake's `all` knows affinity, but no
    cgroup's quota: on more threads than that ggml's would wait for each other.
    """
    given = workflow.resource_settings.cores
    if not given:  # jobs run on a cluster's nodes
        return os.cpu_count() or 1
    cores = min(int(given), machine.cores())
    workflow.register_resource("_cores", cores)
    return cores
