"""A recipe's template and parameters, made into plain YAML for one model.

Templates are Jinja in a sandbox (recipes are passed around by strangers) and
see the model's header, nothing else:

    model            architecture, name, layers, experts, experts_used, embedding_length, full_attention
                     (numbers of the layers that have full attention, of a hybrid model not all)
    tensors          a list of {name, role, layer, shape, type}
    roles            the names of the roles that the model has
    layers_of(role)  the numbers of the layers that have a tensor of the role
    edges(n)         the first n and the last n layers' numbers

What else a template names is a parameter, which config.yaml gives.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import jinja2
import jinja2.meta
from jinja2.sandbox import SandboxedEnvironment

from quantmill import command
from quantmill.errors import QuantmillError
from quantmill.files import write_text
from quantmill.model.ggufio import Header, read_header
from quantmill.model.roles import layer_of, role_of
from quantmill.progress import Log
from quantmill.recipe import rules

_FULL_ATTENTION: Final = ("attn_q", "attn_q_b", "attn_kv_a_mqa")


def facts(header: Header) -> dict[str, Any]:
    """What a template may know of the model."""
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

    def layers_of(role: str) -> list[int]:
        return sorted({tensor["layer"] for tensor in tensors if tensor["role"] == role})

    def edges(count: int) -> list[int]:
        return [layer for layer in range(layers) if layer < count or layer >= layers - count]

    return {
        "model": {
            "architecture": arch,
            "name": header.value("general.name", ""),
            "layers": layers,
            "experts": header.value(f"{arch}.expert_count", 0),
            "experts_used": header.value(f"{arch}.expert_used_count", 0),
            "embedding_length": header.value(f"{arch}.embedding_length", 0),
            "full_attention": sorted(set().union(*map(layers_of, _FULL_ATTENTION))),
        },
        "tensors": tensors,
        "roles": sorted({tensor["role"] for tensor in tensors}),
        "layers_of": layers_of,
        "edges": edges,
    }


def render(template: str, parameters: Mapping[str, Any], known: Mapping[str, Any], where: object) -> str:
    """The recipe as canonical YAML text.

    `known` are the model's facts; `where`, the template's file, is named in
    errors: a syntax error (with its line), a parameter that is missing or that
    the template does not take, or a result that is no recipe.
    """
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["tojson"] = _json
    try:
        named = jinja2.meta.find_undeclared_variables(environment.parse(template))
        _check_parameters(parameters, named - known.keys() - environment.globals.keys(), where)
        text = environment.from_string(template).render({**parameters, **known})
    except jinja2.TemplateSyntaxError as error:
        raise QuantmillError(f"template error in line {error.lineno} ({error.message})", where) from None
    except jinja2.UndefinedError as error:
        raise QuantmillError(
            f"template error: {error.message}", where, "give it among the recipe's parameters"
        ) from None
    except QuantmillError:
        raise
    except Exception as error:  # a template is a program: it can raise anything
        raise QuantmillError(f"template error ({type(error).__name__}: {error})", where) from None
    return rules.dump(rules.parse(text, where))


def _json(value: Any) -> str:
    """JSON, which YAML reads; a missing parameter is said to be that, and not to be unserialisable."""
    return json.dumps(str(value) if isinstance(value, jinja2.Undefined) else value)


def _check_parameters(parameters: Mapping[str, Any], taken: set[str], where: object) -> None:
    for name in parameters:
        if name not in taken:
            near = get_close_matches(name, taken, n=1)
            cure = f"did you mean {near[0]}?" if near else "it takes " + (", ".join(sorted(taken)) or "none")
            raise QuantmillError(f"the template takes no parameter {name}", where, cure)


def read_template(path: Path) -> str:
    """The template's text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise QuantmillError("no such template", path, "check the recipe's field `template`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise QuantmillError(f"cannot be read ({error})", path) from None


def main(args: argparse.Namespace, log: Log) -> None:
    """Render one recipe for one model."""
    config = args.spec["config"]
    text = render(
        read_template(args.template), config["parameters"], facts(read_header(args.model)), args.template
    )
    write_text(args.out, text)
    log.say(f"recipe {config['recipe']} rendered from {args.template}")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF")
    arguments.add_argument("--template", type=Path, required=True, help="a file of recipes/")
    arguments.add_argument("--out", type=Path, required=True, help="the recipe, as plain YAML")
    command.run(arguments, main)
