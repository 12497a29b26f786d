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

from quantmill import environment, offload, parts
from quantmill.errors import QuantmillError
from quantmill.flow.rules import refusing, spec_of

if TYPE_CHECKING:
    from quantmill.flow.card_specs import CardSpecs
    from quantmill.flow.estimate import Estimate
    from quantmill.flow.inputs import Inputs, Mark
    from quantmill.flow.logs import Logs
    from quantmill.flow.project import Project
    from quantmill.flow.resources import Resources
    from quantmill.flow.shards import Shards
    from quantmill.flow.specs import Specs
    from quantmill.flow.targets import Targets
    from quantmill.flow.why import Why


class Flow(NamedTuple):
    """What the rules are made with."""

    project: Project
    inputs: Inputs
    targets: Targets
    specs: Specs
    card_specs: CardSpecs
    logs: Logs
    estimate: Estimate
    resources: Resources
    shards: Shards
    why: Why
    spec_of: Callable[[Callable[..., str]], Callable[[Any], str]]
    refuse_orphans: Callable[[], None]
    refuse_unsound: Callable[[], None]
    sweep: Callable[[], None]


def check_config(file: str) -> None:
    """Refuse a config file that is no sound YAML in one line, before Snakemake reads it in its own way."""
    with refusing():
        environment.check_python_path(os.getenv("PYTHONPATH", ""))

        from quantmill.config.refusal import check_yaml

        if Path(file).exists():
            check_yaml(Path(file))


def begin(workflow: Any, config: dict[str, Any], ancient: Mark, local: Mark) -> Flow:
    """Check the config and the environment; all arguments are Snakemake's.

    Bad input ends the run with one line.
    """
    with refusing():
        environment.check_python_path(os.getenv("PYTHONPATH", ""))

        from quantmill.flow import beside, cap, naming
        from quantmill.flow.card_specs import CardSpecs
        from quantmill.flow.digests import Digests
        from quantmill.flow.estimate import Estimate
        from quantmill.flow.inputs import Inputs
        from quantmill.flow.logs import Logs
        from quantmill.flow.paths import Paths
        from quantmill.flow.project import Project
        from quantmill.flow.resources import Resources, runs_elsewhere
        from quantmill.flow.shards import Shards
        from quantmill.flow.specs import Specs
        from quantmill.flow.targets import Targets
        from quantmill.flow.why import Why

        confirmed, verify = _confirmed(workflow, config), _verify(workflow, config)
        project = Project(config, [str(file) for file in workflow.configfiles], confirmed=confirmed)
        beside.check(project)
        if workflow.is_main_process and (line := cap.warning(project)) is not None:
            print(f"warning: {line}", file=sys.stderr)
        for line in naming.remarks(project) if workflow.is_main_process else ():
            print(f"warning: {line}", file=sys.stderr)
    paths = Paths(project)
    inputs = Inputs(paths, ancient, local)
    targets = Targets(inputs)
    resources = Resources(project, paths, workflow)
    models = partial(_requested, workflow, project)  # not known while the workflow is read
    here = not runs_elsewhere(workflow)
    digests = Digests(project, local=here, models=models, threads=resources.cores)
    with refusing():
        digests.check_keys()
    specs = Specs(digests)
    os.environ.update(_environment(project))
    estimate = Estimate(targets, resources.cores, workflow)
    why = Why(workflow, project.specs, targets.all)
    atexit.register(estimate.at_exit)
    atexit.register(why.at_exit)
    return Flow(
        project,
        inputs,
        targets,
        specs,
        CardSpecs(specs, targets, verify=verify),
        Logs(project.results),
        estimate,
        resources,
        Shards(inputs),
        why,
        partial(spec_of, folder=project.specs),
        partial(_refuse_orphans, workflow),
        partial(_refuse_unsound, workflow),
        partial(parts.sweep_below, project.results),
    )


def _refuse_orphans(workflow: Any) -> None:
    """End a run beside which jobs of a former one would write."""
    from quantmill.flow import orphans

    with refusing():
        orphans.refuse(workflow)


def _refuse_unsound(workflow: Any) -> None:
    """End a run in an error that made a file which failed its check."""
    from quantmill.flow import sound

    with refusing():
        sound.refuse(job.output[0] for job in workflow.dag.jobs if job.rule.name == "check_file")


def _confirmed(workflow: Any, config: dict[str, Any]) -> bool:
    """Whether `--config confirm=yes` lets `publish` upload.

    It is given anew each time: in a file it is an unknown field.
    """
    given = workflow.config_settings.config
    if "confirm" not in given:
        return False
    config.pop("confirm", None)
    return str(given["confirm"]).lower() in ("yes", "true")


def _verify(workflow: Any, config: dict[str, Any]) -> str | None:
    """What `--config verify=all` or `verify=sample` says to `verify`; None where it is not given."""
    given = workflow.config_settings.config
    if "verify" not in given:
        return None
    config.pop("verify", None)
    mode = str(given["verify"])
    if mode not in ("all", "sample"):
        raise QuantmillError(f"{mode} is neither all nor sample", "--config verify", "give it one of them")
    return mode


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
        "QUANTMILL_STORE_READ": json.dumps(
            [str(Path(path).absolute()) for path in project.config.store.read]
        ),
        "QUANTMILL_EVALUATIONS": json.dumps({"file": project.file, "models": project.unchecked}),
    }


def _offload(project: Project) -> dict[str, dict[str, Any]]:
    """How each model is spread over devices, of those for which the user wants anything."""
    models = project.given.models
    settings = {model: project.given.offload_of(model).settings() for model in models}
    return {model: wanted for model, wanted in settings.items() if wanted}


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
