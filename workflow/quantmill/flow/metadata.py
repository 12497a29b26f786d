"""What the config says of a model in the metadata of its files: `general.*` of ggml's docs/gguf.md.

What the source says of its own base models stays, which is seen where the file is written.
"""

from __future__ import annotations

from typing import Final

from quantmill.card.view import listed
from quantmill.check.template import refuse_broken
from quantmill.config.metadata import Metadata
from quantmill.flow.project import Project
from quantmill.formats.general import BASE_MODEL, SAMPLING, Plain

_HUB: Final = "https://huggingface.co/"
_OWN: Final = (
    *("name", "basename", "size_label", "finetune", "version", "author", "organization", "description"),
    "url",
)
TEMPLATE: Final = "tokenizer.chat_template"


def of(project: Project, model: str, recipe: str) -> dict[str, Plain]:
    """The keys of a recipe's file that differ from the source's, with their values; none without the section.

    QuantmillError where the chat template is broken.
    """
    own = project.config.models[model]
    given = own.metadata if "metadata" in own.model_fields_set else project.config.metadata
    if given is None:
        return {}
    values: dict[str, Plain] = {f"general.{field}": getattr(given, field) for field in _OWN}
    if given.card:
        values |= _of_card(project, model)
    sampling = given.sampling.model_dump() if given.sampling else {}
    values |= {f"{SAMPLING}{name}": value for name, value in sampling.items()}
    values |= {"quantize.recipe": recipe, TEMPLATE: _template(given) or ""}
    return {key: value for key, value in values.items() if value not in (None, "", [])}


def _of_card(project: Project, model: str) -> dict[str, Plain]:
    card, repository = project.card(model), project.config.repository_of(model)
    bases = listed(card.base_model)
    values: dict[str, Plain] = {
        "general.license": card.license or "",
        "general.license.name": card.license_name or "",
        "general.license.link": card.license_link or "",
        "general.quantized_by": card.quantized_by or "",
        "general.languages": listed(card.language),
        "general.tags": list(card.tags or []),
        "general.repo_url": f"{_HUB}{repository}" if repository else "",
        "general.source.repo_url": f"{_HUB}{bases[0]}" if bases and "/" in bases[0] else "",
    }
    if bases:
        values[f"{BASE_MODEL}count"] = len(bases)
    for number, base in enumerate(bases):
        organization, _, name = base.rpartition("/")
        prefix = f"{BASE_MODEL}{number}"
        values |= {f"{prefix}.name": name, f"{prefix}.organization": organization}
        values[f"{prefix}.repo_url"] = f"{_HUB}{base}" if organization else ""
    return values


def _template(given: Metadata) -> str | None:
    text = given.template
    if text is not None:
        refuse_broken(text, str(given.chat_template))
    return text
