"""How to use a file: commands to copy, for the engines that can load it."""

from __future__ import annotations

from typing import Any

from quantmill.card.view import View
from quantmill.judge.quant import DECODER


def build(view: View) -> dict[str, Any]:
    """It is on every card that offers a file."""
    in_llama_cpp = [quant for quant in (view.pick, *view.shown.quants) if not quant.needs_other_engine]
    return {
        "decoder": view.measured.kind == DECODER,
        "kind": view.measured.kind,
        "words": view.measured.check.get("words", ""),
        "repo": view.repo,
        "used_with": view.config.get("beside", []),
        "name": view.config["model"],
        "context": view.context,
        "has_template": bool(view.shown.facts["chat_template"]),
        "template_in_modelfile": view.chat is not None,
        "file": next(iter(in_llama_cpp), None),
        "in_ollama": next(iter(view.in_ollama), None),
        "other_engine": view.other_engine,
    }
