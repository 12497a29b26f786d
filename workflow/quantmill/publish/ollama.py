"""What a model is in a registry of Ollama's: a manifest for each file, with its layers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import read_header
from quantmill.formats.publication import FACTS
from quantmill.names import label
from quantmill.progress import BYTES, Log
from quantmill.publish.files import unsound, withheld_in
from quantmill.publish.hub import UnreachableError
from quantmill.publish.registry import MANIFEST, Blob, Registry

_LAYER: Final = "application/vnd.ollama.image."
_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
_QUOTED: Final = re.compile(r'^(TEMPLATE|SYSTEM) """(.*?)"""$', re.MULTILINE | re.DOTALL)
_PARAMETER: Final = re.compile(r"^PARAMETER (\w+) (.+)$", re.MULTILINE)


class Tag(NamedTuple):
    """A file in the registry: its recipe, its tag, its manifest, and the blobs that this names."""

    recipe: str
    tag: str
    manifest: bytes
    blobs: list[Blob]


def tags_of(results: Path, model: str, recipes: list[str]) -> list[Tag]:
    """The tags of a model: of these recipes those with a Modelfile, which Ollama can load."""
    found = ((recipe, results / "card" / "modelfiles" / f"Modelfile.{recipe}") for recipe in recipes)
    return [_tag(results, model, recipe, path.read_text("utf-8")) for recipe, path in found if path.exists()]


class Push(NamedTuple):
    """A model's tags beside what its place in a registry holds; a state of each: new, changed, unchanged, or
    unknown where the registry cannot be reached.
    """

    model: str
    place: str
    tags: list[Tag]
    states: list[str]
    unsound: list[str]

    @property
    def due(self) -> list[Tag]:
        """The tags that differ."""
        pairs = zip(self.tags, self.states, strict=True)
        return [tag for tag, state in pairs if state not in ("unchanged", "unknown")]

    def shown(self) -> list[str]:
        """The lines that a person reads before anything is uploaded."""
        size = sum(blob.size for tag in self.due for blob in tag.blobs)
        head = f"{self.model} -> {self.place} (Ollama): {len(self.due)} of {len(self.tags)} tags to upload"
        lines = [
            f"{state:9}  {self.place}:{tag.tag}" for tag, state in zip(self.tags, self.states, strict=True)
        ]
        return [f"{head}, {size:,} bytes at most", *lines, *self.unsound]

    def refuse_unsound(self) -> None:
        """QuantmillError where a file failed its check."""
        if self.unsound:
            raise QuantmillError("; ".join(self.unsound), self.place, "make it again, or leave it out")

    def push(self, log: Log) -> str:
        """Send the blobs of each tag that differs, then its manifest: what came of it."""
        total = sum(blob.size for tag in self.due for blob in tag.blobs)
        if not self.due:
            return "nothing differs"
        with (
            Registry(self.place) as registry,
            log.progress(f"upload {self.place}", total, BYTES) as progress,
        ):
            for tag in self.due:
                for blob in tag.blobs:
                    registry.send(blob, progress)
                registry.put_manifest(tag.tag, tag.manifest)
                if registry.manifest(tag.tag) != tag.manifest:
                    cure = "run it again and look at the registry"
                    raise QuantmillError(f"{tag.tag} is not there as sent", self.place, cure)
        return ", ".join(tag.tag for tag in self.due)


def prepared(results: Path, model: str, place: str, recipes: list[str], confirmed: bool) -> Push:
    """What there is to push of a model, compared with its place in a registry.

    QuantmillError where there is nothing, and where the registry refuses; where it cannot be reached only if
    the push is `confirmed`.
    """
    folder = results / model
    left_out = withheld_in(folder)
    offered = [recipe for recipe in recipes if recipe not in left_out]
    tags = tags_of(folder, model, offered)
    if not tags:
        raise QuantmillError("no file that Ollama can load", place, "leave out publish.ollama for it")
    try:
        with Registry(place) as registry:
            held = [registry.manifest(tag.tag) for tag in tags]
    except UnreachableError:
        if confirmed:
            raise
        states = ["unknown"] * len(tags)
    else:
        states = [
            "new" if there is None else "unchanged" if there == tag.manifest else "changed"
            for tag, there in zip(tags, held, strict=True)
        ]
    return Push(model, place, tags, states, unsound(folder, [tag.recipe for tag in tags]))


def _tag(results: Path, model: str, recipe: str, modelfile: str) -> Tag:
    facts = FACTS.read(results / "gguf" / f"{model}-{recipe}.json")
    file = results / "gguf" / facts["file"]
    layers = [("model", Blob(file, facts["bytes"], facts["sha256"]))]
    texts = {kind.lower(): text for kind, text in _QUOTED.findall(modelfile)}
    layers += [(kind, Blob.of(texts[kind].encode())) for kind in ("template", "system") if kind in texts]
    layers.append(("params", Blob.of(json.dumps(_parameters(modelfile), sort_keys=True).encode())))
    config = Blob.of(json.dumps(_config(file, [blob for _, blob in layers]), sort_keys=True).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _described(_CONFIG, config),
        "layers": [_described(f"{_LAYER}{kind}", blob) for kind, blob in layers],
    }
    tag = re.sub(r"[^A-Za-z0-9_.-]", "-", recipe)
    return Tag(recipe, tag, json.dumps(manifest).encode(), [*(blob for _, blob in layers), config])


def _described(kind: str, blob: Blob) -> dict[str, Any]:
    return {"mediaType": kind, "digest": blob.digest, "size": blob.size}


def _parameters(modelfile: str) -> dict[str, Any]:
    """The parameters of a Modelfile; there may be several stop words."""
    values: dict[str, Any] = {}
    for name, text in _PARAMETER.findall(modelfile):
        value = json.loads(text)
        if name == "stop":
            values.setdefault("stop", []).append(value)
        else:
            values[name] = value
    return values


def _config(file: Path, layers: list[Blob]) -> dict[str, Any]:
    """What Ollama shows of a model, without loading it."""
    header = read_header(file)
    parameters = sum(tensor.elements for tensor in header.tensors)
    size = f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.2f}M"
    return {
        "model_format": "gguf",
        "model_family": header.architecture,
        "model_families": [header.architecture],
        "model_type": size,
        "file_type": label(file.name) or "unknown",
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [blob.digest for blob in layers]},
    }
