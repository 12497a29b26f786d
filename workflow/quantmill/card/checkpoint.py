"""The card of an exported checkpoint, from its report alone: `python -m quantmill.card.checkpoint`.

It lies in the checkpoint's folder, as the Hub wants it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from quantmill import command
from quantmill.card import template
from quantmill.card.front_matter import hub_fields
from quantmill.card.view import listed
from quantmill.files import write_text
from quantmill.formats.publication import CHECKPOINT, Checkpoint
from quantmill.formats.settings import CheckpointCard
from quantmill.progress import Log


def render(report: Checkpoint, config: CheckpointCard) -> str:
    """The card as markdown; `report` is `checkpoint/<model>-<recipe>.json`, `config` the spec's."""
    values = {
        "front_matter": front_matter(config),
        "title": _title(config),
        "r": report,
        "tensor_bytes": sum(part["bytes"] for part in report["dtypes"].values()),
        "repo": config.get("repo"),
        "folder": f"{config['model']}-{report['recipe']}",
        "base_models": listed(config["card"].get("base_model")),
        "toolchain": sorted(config["toolchain"].items()),
    }
    return template.render("checkpoint.md.j2", values)


def front_matter(config: CheckpointCard) -> str:
    """The YAML that the Hub reads, without its `---` lines."""
    from huggingface_hub.repocard_data import ModelCardData

    card = config["card"]
    tags = ["nvfp4", "quantized", "vllm", "safetensors", *(card.get("tags") or [])]
    return ModelCardData(license=card.get("license"), tags=tags, **hub_fields(card)).to_yaml()


def _title(config: CheckpointCard) -> str:
    base = listed(config["card"].get("base_model"))
    name = config["card"].get("title") or (base[0].rsplit("/", 1)[-1] if base else config["model"])
    return f"{name} NVFP4" if "nvfp4" not in name.lower() else str(name)


def main(args: argparse.Namespace, log: Log) -> None:
    """Read the report, write the card."""
    write_text(args.card, render(CHECKPOINT.read(args.report), args.spec["config"]))
    log.say(f"card of the checkpoint: {args.card}")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--report", type=Path, required=True, help="JSON of the export")
    arguments.add_argument("--card", type=Path, required=True, help="markdown file to write")
    command.run(arguments, main)
