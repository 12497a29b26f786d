"""The files in the repository, each with what it is."""

from __future__ import annotations

from typing import Any

from quantmill import text
from quantmill.card.view import View
from quantmill.formats.proof import is_identical


def verified(view: View) -> str:
    """What was made again from the lock and was the same, in words; empty where nothing was verified."""
    report = view.shown.verified
    if report is None or not all(map(is_identical, report["files"])):
        return ""
    files = report["files"]
    engines = sorted({file["engine"][:12] for file in files})
    by = f"by the engine{'s' if engines[1:] else ''} {' and '.join(map(text.code, engines))}"
    if report["mode"] == "all":
        return f"{len(files)} of {len(files)} files were made again from `lock.json`, bit for bit, {by}."
    compared, tensors = (sum(file[key] for file in files) for key in ("compared", "tensors"))
    return (
        f"A sample, {compared} of {tensors} tensors of {text.plural(len(files), 'file')}, was made again "
        f"from `lock.json`, bit for bit, {by}."
    )


def build(view: View) -> dict[str, Any]:
    """It is on every card that offers a file."""
    included = set(view.config["include"])
    return {
        "offered": [*view.offered, *view.drafts],
        "imatrix": view.measured.imatrix is not None and "imatrix" in included,
        "included": included,
        "modelfiles": bool(view.in_ollama),
        "plots": view.plots,
        "repo": view.repo,
        "signed": view.config.get("signed", False),
        "verified": verified(view),
    }
