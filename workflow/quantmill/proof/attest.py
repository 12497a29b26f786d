"""In-toto statements of what was made from what, in the form that ggufpacker reads.

Statement v1 (https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md) with ggufpacker's own
predicates of its docs/derivation-attestation.md and docs/conversion-attestation.md (0.4 reads the first, 0.5
both): one subject, plain names of files side by side, sha256 of each. ggufpacker writes `reDerivedDigest`
where it has just made a file again; that is `snakemake verify` here, so that it is left out, as its readers
allow.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Final

from quantmill.formats.proof import Lock, LockedRecipe, LockedSource, Statement
from quantmill.formats.publication import Part

TYPE: Final = "https://in-toto.io/Statement/v1"
_PREDICATES: Final = "https://github.com/theadamdanielsson/ggufpacker/attestation"
DERIVATION: Final = f"{_PREDICATES}/gguf-derivation/v0"
CONVERSION: Final = f"{_PREDICATES}/gguf-conversion/v0"

OWN: Final = "custom"
"""The quantType of a file that no preset of llama-quantize gives; it knows no such type, and refuses it."""


def statements(lock: Lock, lock_sha256: str) -> dict[str, Statement]:
    """All statements of a lock, by the names of their files."""
    made = {
        f"{part['file']}.derivation.json": derivation(lock, lock_sha256, recipe, part)
        for recipe in lock["recipes"].values()
        for part in recipe["published"]
    }
    if lock["source"]["checkpoint"] is not None:
        made[f"{lock['source']['files'][0]['file']}.conversion.json"] = conversion(lock, lock_sha256)
    return made


def derivation(lock: Lock, lock_sha256: str, recipe: LockedRecipe, part: Part) -> Statement:
    """That a file was quantized from the source."""
    engine = lock["engines"][recipe["settings"].get("engine", "mainline")]
    return {
        "_type": TYPE,
        "subject": [_resource(PurePosixPath(part["file"]).name, part["sha256"])],
        "predicateType": DERIVATION,
        "predicate": {
            "baseModel": _base_model(lock["source"]),
            "recipe": _recipe(lock, recipe),
            "builder": {
                "tool": "quantmill/quantize.write",
                "buildIdentity": {
                    "versionBanner": f"{engine['package']} {engine['version']} ({engine['compiler']})",
                    "libraries": engine["libraries"],
                },
            },
            "reproducibility": _reproducibility(lock_sha256),
            "attestedBy": f"quantmill {lock['versions']['quantmill']}",
        },
    }


def _base_model(source: LockedSource) -> dict[str, Any]:
    """The source: its first file, with the others of a split one; where it is published."""
    first, *others = source["files"]
    made = _resource(first["file"], first["sha256"]) | {"sizeBytes": first["bytes"]}
    if others:
        made["otherFiles"] = [_resource(one["file"], one["sha256"]) for one in others]
    if hub := source["hub"]:
        made["uri"] = f"pkg:huggingface/{hub['repo']}@{hub['revision']}"
        made["downloadLocation"] = (
            f"https://huggingface.co/{hub['repo']}/resolve/{hub['revision']}/{hub['file']}"
        )
    return made


def _recipe(lock: Lock, recipe: LockedRecipe) -> dict[str, Any]:
    quant_type = recipe["preset"] or OWN
    imatrix = lock["imatrix"] if recipe["imatrix"] else None
    name = imatrix["named"]["file"] if imatrix else ""
    option = f"--imatrix {name} " if imatrix else ""
    made: dict[str, Any] = {
        "quantType": quant_type,
        "outputFormat": "gguf",
        "useImatrix": imatrix is not None,
        "plan": {"digest": {"sha256": recipe["plan"]}},
    }
    if recipe["preset"]:
        made["command"] = f"llama-quantize {option}<baseModel> <output> {quant_type}"
    if imatrix:
        made["imatrix"] = _resource(name, imatrix["sha256"]) | {"sizeBytes": imatrix["bytes"]}
    return made


def conversion(lock: Lock, lock_sha256: str) -> Statement:
    """That the source was converted from a checkpoint."""
    source, checkpoint = lock["source"], lock["source"]["checkpoint"]
    assert checkpoint is not None
    return {
        "_type": TYPE,
        "subject": [_resource(source["files"][0]["file"], source["sha256"])],
        "predicateType": CONVERSION,
        "predicate": {
            "source": {
                "directoryName": checkpoint["name"],
                "files": [_resource(name, sha256) for name, sha256 in sorted(checkpoint["files"].items())],
            },
            "recipe": {
                "transform": "convert_hf_to_gguf",
                "outputType": checkpoint["to"],
                "command": f"python convert_hf_to_gguf.py --outtype {checkpoint['to']} "
                f"{'--mmproj ' if checkpoint.get('projector') else ''}"
                "--outfile <output> <sourceDir>",
            },
            "builder": {
                "tool": "ggml-org/llama.cpp/convert_hf_to_gguf.py",
                "buildIdentity": {"pins": checkpoint["converter"]},
            },
            "reproducibility": _reproducibility(lock_sha256),
            "attestedBy": f"quantmill {lock['versions']['quantmill']}",
        },
    }


def _reproducibility(lock_sha256: str) -> dict[str, Any]:
    """`deterministic` would say that any build gives these bytes; they are those of the engine named."""
    return {"deterministic": False, "lock": _resource("lock.json", lock_sha256)}


def _resource(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}
