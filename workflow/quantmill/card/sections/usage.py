"""How to use a file: commands to copy, for the engines that can load it."""

from __future__ import annotations

from typing import Any

from quantmill import names
from quantmill.card.view import View
from quantmill.judge.quant import DECODER

_SAMPLING = (
    ("temp", "temperature"),
    ("top_k", "top-k"),
    ("top_p", "top-p"),
    ("min_p", "min-p"),
    ("penalty_repeat", "repetition penalty"),
    ("penalty_last_n", "over the last tokens:"),
)


def build(view: View) -> dict[str, Any]:
    """It is on every card that offers a file."""
    in_llama_cpp = [quant for quant in (view.pick, *view.shown.quants) if not quant.needs_other_engine]
    paths = [quant.file for quant in view.shown.quants]
    file, in_ollama = next(iter(in_llama_cpp), None), next(iter(view.in_ollama), None)
    return {
        "decoder": view.measured.kind == DECODER,
        "kind": view.measured.kind,
        "words": view.measured.check.get("words", ""),
        "repo": view.repo,
        "used_with": view.config.get("beside", []),
        "together": bool(view.projectors),
        "name": view.config["model"],
        "context": view.context,
        "has_template": bool(view.shown.facts["chat_template"]),
        "template_in_modelfile": view.chat is not None,
        "file": file,
        "sampling": ", ".join(
            f"{name} {view.sampling[key]}" for key, name in _SAMPLING if key in view.sampling
        ),
        "tag": names.llama_tag(file.file, file.name, paths) if file else None,
        "in_ollama": in_ollama,
        "ollama_tag": names.ollama_tag(in_ollama.file, paths) if in_ollama else None,
        "other_engine": view.other_engine,
        "drafts": view.drafts,
        "refused_by_ik": [quant for quant in view.other_engine if quant.has_head],
    }
