"""Renders a recipe's template, with its parameters, to plain YAML for one model.

Templates are Jinja in a sandbox, since recipes come from strangers. They see
the model's header and nothing else:

    recipe           the recipe's name
    model            architecture, name, layers, experts, experts_used, embedding_length, gqa (heads that
                     share a key), full_attention (numbers of the layers that have full attention, of a
                     hybrid model not all), evaluated (all layers but those of multi-token prediction)
    tensors          a list of {name, role, layer, shape, type}
    roles            the names of the roles that the model has
    layers_of(*role) the numbers of the layers that have a tensor of one of the roles
    present(*role)   those of the roles that the model has, as a list
    edges(n)         the first n and the last n layers' numbers, multi-token prediction left out
    part(x, n)       how many of n layers a parameter means: x layers, or a share such as 0.25
    refuse(text)     ends it with an error
    ranked           the layers, the most important first (where the recipe has `importance`)
    importance       their scores, by layer (where the recipe has `importance`)
    imported         rules, base, engine and notes of `file` (where the recipe has `file`)

Every other name in a template is a parameter, which config.yaml gives.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, NoReturn

import jinja2
import jinja2.meta
from jinja2.sandbox import SandboxedEnvironment

from quantmill import yamlio
from quantmill.bounded import SmallNumbers, bounded
from quantmill.errors import QuantmillError
from quantmill.files import read_user_text
from quantmill.formats.ggufio import Header
from quantmill.formats.settings import Plan
from quantmill.model.heads import for_file
from quantmill.model.roles import layer_of, role_of
from quantmill.progress import Log
from quantmill.recipe import mtp, rules

_FULL_ATTENTION: Final = ("attn_q", "attn_q_b", "attn_kv_a_mqa")

# Variables that a template has only where the recipe has a field for them, and how to give it.
_RANKED: Final = ("the layers' importance", "say what it is made of, such as importance: imatrix")
_FROM_FIELDS: Final = {
    "ranked": _RANKED,
    "importance": _RANKED,
    "imported": ("a file to import", "give the recipe `file` and `form`"),
}


_LOOPS: Final = "look for loops and products in it"


class _Sandbox(SmallNumbers, SandboxedEnvironment):
    """In which templates are rendered."""


class _RefusedError(Exception):
    """A template's own refusal."""


def facts(header: Header) -> dict[str, Any]:
    """The variables of a template that follow from the model."""
    arch = header.architecture
    tensors: list[dict[str, Any]] = [
        {
            "name": t.name,
            "role": role_of(t.name),
            "layer": layer_of(t.name),
            "shape": list(t.shape),
            "type": t.type,
        }
        for t in header.tensors
    ]
    layers = 1 + max((tensor["layer"] for tensor in tensors), default=-1)

    by_role: dict[str, set[int]] = {}
    for tensor in tensors:
        by_role.setdefault(tensor["role"], set()).add(tensor["layer"])
    evaluated = main_layers(header)

    def layers_of(*names: str) -> list[int]:
        return sorted(set().union(*(by_role.get(role, set()) for role in names)))

    def present(*names: str) -> list[str]:
        return [role for role in names if role in by_role]

    def edges(count: Any) -> list[int]:
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            refuse(f"{count!r} is no number of layers at the ends; such as 5")
        last = len(evaluated) - count
        return [layer for place, layer in enumerate(evaluated) if place < count or place >= last]

    def part(value: Any, layers: int) -> int:
        count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= layers
        if not count and not (isinstance(value, float) and 0 <= value <= 1):
            what = f"{value!r} is no number among {layers} layers, and no share of them"
            refuse(f"{what}; such as 4, or 0.25")
        return value if count else round(value * layers)

    def refuse(text: str) -> NoReturn:
        raise _RefusedError(text)

    return {
        "model": {
            "architecture": arch,
            "name": header.text("general.name") or "",
            "layers": layers,
            "experts": header.number(f"{arch}.expert_count"),
            "experts_used": header.number(f"{arch}.expert_used_count"),
            "embedding_length": header.number(f"{arch}.embedding_length"),
            "gqa": _gqa(header),
            "full_attention": layers_of(*_FULL_ATTENTION),
            "evaluated": evaluated,
        },
        "tensors": tensors,
        "roles": sorted(by_role),
        "layers_of": layers_of,
        "present": present,
        "edges": edges,
        "part": part,
        "refuse": refuse,
    }


def main_layers(header: Header) -> list[int]:
    """The numbers of the layers that are evaluated: all but those of multi-token prediction."""
    layers = sorted({layer_of(tensor.name) for tensor in header.tensors} - {-1})
    return [layer for layer in layers if not layer >= header.evaluated > 0]


def _gqa(header: Header) -> int:
    """llama.cpp's n_gqa, on which its mixtures depend: heads per key head in the first layer."""
    counts = (header.numbers(f"{header.architecture}.attention.head_count{x}") for x in ("", "_kv"))
    heads, keys = ((count or [0])[0] if isinstance(count, list) else count for count in counts)
    return heads // (keys or heads) if heads else 0


def render(template: str, parameters: Mapping[str, Any], variables: Mapping[str, Any], where: object) -> str:
    """The recipe as canonical YAML text.

    `variables` are those of the model; `where` is the template's file, for
    errors. QuantmillError for a syntax error (with its line), for a parameter
    that is missing or that the template does not take, and where the result is
    no recipe.
    """
    environment = _Sandbox(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["tojson"] = _json
    try:
        names = jinja2.meta.find_undeclared_variables(environment.parse(template))
        for name in sorted(_FROM_FIELDS.keys() & names - variables.keys()):
            raise QuantmillError(f"the template needs {_FROM_FIELDS[name][0]}", where, _FROM_FIELDS[name][1])
        _check_parameters(parameters, names - variables.keys() - environment.globals.keys(), where)
        with bounded("the template", where, _LOOPS):
            text = environment.from_string(template).render({**parameters, **variables})
    except MemoryError:
        raise QuantmillError("the template takes more than a GiB of memory", where, _LOOPS) from None
    except jinja2.TemplateSyntaxError as error:
        raise QuantmillError(f"template error in line {error.lineno} ({error.message})", where) from None
    except _RefusedError as error:
        raise QuantmillError(str(error), where) from None
    except jinja2.UndefinedError as error:
        raise QuantmillError(
            f"template error: {error.message}", where, "give it among the recipe's parameters"
        ) from None
    except QuantmillError:
        raise
    except Exception as error:  # a template is a program: it can raise anything
        raise QuantmillError(f"template error ({type(error).__name__}: {error})", where) from None
    return rules.dump(rules.parse(text, where))


def engine_of(template: str, parameters: Mapping[str, Any], imported: str | None, where: object) -> str:
    """The engine of the template's recipe, from its line `engine:` alone, without the model.

    `imported` is the engine of the file that the recipe imports. QuantmillError
    where the line depends on anything but the parameters: the jobs that use an
    engine are set up before the recipe is rendered.
    """
    line = re.search(r"^engine:(.*)$", template, re.MULTILINE)
    if line is None:
        return "mainline"
    environment = _Sandbox(undefined=jinja2.StrictUndefined)
    environment.filters["tojson"] = _json
    try:
        with bounded("its line `engine:`", where, _LOOPS):
            text = environment.from_string(line[1]).render({**parameters, "imported": {"engine": imported}})
        engine = yamlio.load(text, where)
    except Exception as error:
        cure = "write `engine: mainline` or `engine: ik` as they stand here"
        raise QuantmillError(f"its engine does not follow from its line `{line[0]}`", where, cure) from error
    return engine if engine in rules.ENGINES else "mainline"  # rendering refuses what is neither


def _json(value: Any) -> str:
    """JSON, which YAML reads. A missing parameter raises the error that names it."""
    return json.dumps(str(value) if isinstance(value, jinja2.Undefined) else value)


def _check_parameters(parameters: Mapping[str, Any], accepted: set[str], where: object) -> None:
    for name in parameters:
        if name not in accepted:
            near = get_close_matches(name, accepted, n=1)
            cure = (
                f"did you mean {near[0]}?" if near else "it takes " + (", ".join(sorted(accepted)) or "none")
            )
            raise QuantmillError(f"the template takes no parameter {name}", where, cure)


def read_template(path: Path) -> str:
    """The template's text."""
    return read_user_text(path, "check the recipe's field `template`")


def _importance(args: argparse.Namespace, weights: Mapping[str, float], header: Header) -> dict[str, Any]:
    """`importance` and `ranked`, from the sources that have a weight."""
    # numpy is imported only where a recipe needs it.
    from quantmill.formats.imatrix import read_gguf
    from quantmill.formats.sensitivity import read_sensitivity
    from quantmill.recipe import importance

    layers, sources = main_layers(header), []
    if "imatrix" in weights:
        scores = importance.from_imatrix(read_gguf(args.imatrix), layers, args.imatrix)
        sources.append((scores, weights["imatrix"]))
    if "scores" in weights:
        sources.append((importance.from_json(args.scores, layers), weights["scores"]))
    if "sensitivity" in weights:
        table = read_sensitivity(args.sensitivity)
        sources.append((importance.from_sensitivity(table, layers, args.sensitivity), weights["sensitivity"]))
    blended = importance.blend(sources)
    return {"importance": blended, "ranked": importance.ranked(blended)}


def add_options(arguments: argparse.ArgumentParser) -> None:
    """What a template is rendered with."""
    arguments.add_argument("--template", type=Path, nargs="?", help="a file of recipes/, to be rendered")
    arguments.add_argument("--file", type=Path, nargs="?", help="a recipe in a common form, to import")
    arguments.add_argument("--imatrix", type=Path, nargs="?", help="imatrix.gguf, for the layers' importance")
    arguments.add_argument("--scores", type=Path, nargs="?", help="JSON of scores, for the same")
    arguments.add_argument("--sensitivity", type=Path, nargs="?", help="sensitivity.tsv, for the same")


def rendered(args: argparse.Namespace, config: Plan, source: Header, where: object, log: Log) -> str:
    """The recipe of a command line's template, for one model; `where` is it, for errors."""
    header = for_file(source, config.get("mtp"))
    variables = facts(header) | {"recipe": config["recipe"]}
    if config.get("importance"):
        variables |= _importance(args, config["importance"], header)
    if args.file is not None:
        from quantmill.recipe import interchange

        variables["imported"] = interchange.read(args.file, config["form"], header)
    if "ranked" in variables:
        log.say("layers, the most important first: " + ", ".join(map(str, variables["ranked"])))
    text = render(read_template(args.template), config["parameters"], variables, where)
    if "mtp" not in config:
        return text
    own = rules.parse(text, where)
    return rules.dump(mtp.with_head(own, source, config["mtp"], f"recipe {config['recipe']}"))
