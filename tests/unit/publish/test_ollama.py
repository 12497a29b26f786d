"""Publishing to a registry of Ollama's on loopback: what is sent, what is not sent twice, what is refused."""

from __future__ import annotations

import argparse
import base64
import io
import json
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from quantmill.errors import QuantmillError
from quantmill.files import write_json
from quantmill.formats.checks import Checks
from quantmill.formats.publication import Facts
from quantmill.progress import Log
from quantmill.publish import ollama, ollama_key, registry
from quantmill.publish.upload import main
from quantmill.spec import file_sha256
from registry import TOKEN, Registry, serving
from reports import complete

MODEL = Path(__file__).parents[2] / "data" / "tiny-llama.gguf"
MODELFILE = """FROM ../tiny-Q8_0.gguf
PARAMETER num_ctx 2048
PARAMETER temperature 0.7
TEMPLATE \"\"\"{{ .Prompt }}
{{ .Response }}\"\"\"
PARAMETER stop "<|im_end|>"
SYSTEM \"\"\"Be kind.\"\"\"
"""


@pytest.fixture
def server() -> Iterator[Registry]:
    with serving() as server:
        yield server


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Finished files of two recipes, one of which Ollama cannot load."""
    for recipe in ("Q8_0", "IQ4_KS"):
        gguf = tmp_path / "tiny" / "gguf" / f"tiny-{recipe}.gguf"
        gguf.parent.mkdir(parents=True, exist_ok=True)
        gguf.write_bytes(MODEL.read_bytes())
        facts = {"file": gguf.name, "bytes": gguf.stat().st_size, "sha256": file_sha256(gguf)}
        write_json(gguf.with_suffix(".json"), complete(Facts, facts))
        checked(tmp_path, recipe)
    modelfiles = tmp_path / "tiny" / "card" / "modelfiles"
    modelfiles.mkdir(parents=True)
    (modelfiles / "Modelfile.Q8_0").write_text(MODELFILE, encoding="utf-8")
    return tmp_path


def checked(results: Path, recipe: str, *failures: str) -> None:
    report = {"file": f"tiny-{recipe}.gguf", "tokenizer": "none", "tried": "read"}
    report["failures"] = list(failures)
    write_json(results / "tiny" / "checks" / f"{recipe}.json", complete(Checks, report))


def publish(results: Path, place: str, confirm: bool = True) -> list[str]:
    """What the command says."""
    settings: dict[str, Any] = {"repo": None, "recipes": ["Q8_0", "IQ4_KS"], "ollama": place}
    config = {"confirm": confirm, "models": {"tiny": settings}}
    said = io.StringIO()
    with redirect_stdout(said):
        main(argparse.Namespace(spec={"config": config}, results=results), Log(results / "log"))
    return said.getvalue().splitlines()


def test_a_file_becomes_a_tag_with_its_layers(results: Path, server: Registry) -> None:
    place = f"{server.address}/me/tiny"
    looked = publish(results, place, confirm=False)
    assert looked[0].startswith(f"tiny -> {place} (Ollama): 1 of 1 tags to upload, ")
    assert looked[1] == f"new        {place}:Q8_0" and not server.blobs
    assert looked[-1] == "nothing was uploaded; to upload: add --config confirm=yes"
    assert publish(results, place)[-1] == f"{place}: Q8_0"
    manifest = json.loads(server.manifests["Q8_0"])
    layers = {one["mediaType"].rsplit(".", 1)[1]: server.blobs[one["digest"]] for one in manifest["layers"]}
    assert layers["model"] == MODEL.read_bytes()
    assert layers["template"] == b"{{ .Prompt }}\n{{ .Response }}" and layers["system"] == b"Be kind."
    assert json.loads(layers["params"]) == {"num_ctx": 2048, "temperature": 0.7, "stop": ["<|im_end|>"]}
    config = json.loads(server.blobs[manifest["config"]["digest"]])
    assert (config["model_family"], config["file_type"], config["model_type"]) == ("llama", "Q8_0", "2.62M")
    assert config["rootfs"]["diff_ids"] == [one["digest"] for one in manifest["layers"]]


def test_what_is_there_is_not_sent_again(results: Path, server: Registry) -> None:
    place = f"{server.address}/me/tiny"
    publish(results, place)
    server.asked.clear()
    assert publish(results, place)[-1] == f"{place}: nothing differs"
    assert server.asked == ["GET /v2/me/tiny/manifests/Q8_0"]
    modelfile = results / "tiny" / "card" / "modelfiles" / "Modelfile.Q8_0"
    modelfile.write_text(MODELFILE.replace("0.7", "0.6"), encoding="utf-8")
    assert publish(results, place, confirm=False)[1].startswith("changed")
    publish(results, place)
    # the parameters and the config: neither the weights nor the template
    assert sum(one.startswith("POST") for one in server.asked) == 2


def test_large_files_go_in_parts_and_where_the_registry_wants_them(
    results: Path, server: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_LEAST_PART", 2_000_000)
    server.redirects = True
    publish(results, f"{server.address}/me/tiny")
    assert len(server.uploads["0"]) == 3
    assert MODEL.read_bytes() in server.blobs.values()
    assert sum(one.startswith("PUT /direct/0/") for one in server.asked) == 3


def test_a_token_is_asked_for_with_ollamas_key(
    results: Path, server: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    server.asks_for_token = True
    place = f"{server.address}/me/tiny"
    with pytest.raises(
        QuantmillError, match=r"id_ed25519: cannot be read \(No such file.*; run `ollama` once"
    ):
        publish(results, place)
    (tmp_path / ".ollama").mkdir()
    key = tmp_path / ".ollama" / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    assert publish(results, place)[-1] == f"{place}: Q8_0"
    server.expired = 1  # in the middle of an upload
    server.blobs.clear()
    server.manifests.clear()
    assert publish(results, place)[-1] == f"{place}: Q8_0" and len(server.signatures) == 5
    address, signature = server.signatures[0]
    assert "&scope=repository%3Apull%2Cpush&scope=x&service=ollama&ts=" in address
    blob, signed = signature.split(":")
    assert blob == key.with_suffix(".pub").read_text("ascii").split()[1]
    digest = "ZTNiMGM0NDI5OGZjMWMxNDlhZmJmNGM4OTk2ZmI5MjQyN2FlNDFlNDY0OWI5MzRjYTQ5NTk5MWI3ODUyYjg1NQ=="
    public = load_ssh_public_key(key.with_suffix(".pub").read_bytes())
    assert isinstance(public, Ed25519PublicKey)
    public.verify(base64.b64decode(signed), f"GET,{address},{digest}".encode())


@pytest.mark.parametrize(
    ("method", "status", "line"),
    [
        (
            "PUT /v2/me/tiny/manifests",
            403,
            "PUT /v2/me/tiny/manifests/Q8_0 (403 no: None); the key may not write",
        ),
        ("POST", 500, "POST /v2/me/tiny/blobs/uploads/ (500 no: None); check the network"),
        ("PATCH", 413, "PATCH /upload/0 (413 no: None); check the network"),
        ("GET", 401, "GET /v2/me/tiny/manifests/Q8_0 (401 no: None); add ~/.ollama/id_ed25519.pub"),
    ],
)
def test_a_registry_that_refuses_is_one_line(
    results: Path, server: Registry, method: str, status: int, line: str
) -> None:
    server.refuses[method] = status
    place = f"{server.address}/me/tiny"
    with pytest.raises(QuantmillError) as error:
        publish(results, place)
    assert str(error.value).startswith(f"{place}: the registry refuses {line}")
    assert "\n" not in str(error.value) and "Q8_0" not in server.manifests


def test_a_token_is_not_shown(
    results: Path, server: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ollama").mkdir()
    key = tmp_path / ".ollama" / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    server.asks_for_token = True
    server.refuses["POST"] = 403
    with pytest.raises(QuantmillError, match=r"\(403 no: Bearer \(token\)\)") as error:
        publish(results, f"{server.address}/me/tiny")
    assert TOKEN not in str(error.value)


def test_no_answer_and_nothing_to_push(results: Path, server: Registry) -> None:
    place = "http://127.0.0.1:9/me/tiny"
    assert publish(results, place, confirm=False)[1] == f"unknown    {place}:Q8_0"
    with pytest.raises(QuantmillError, match=f"^{place}: cannot be reached "):
        publish(results, place)
    checked(results, "Q8_0", "2 of the 9 blocks of a.weight are NaN")
    place = f"{server.address}/me/tiny"
    with pytest.raises(QuantmillError, match=f"^{place}: tiny-Q8_0.gguf failed its check: 2 of the 9 blocks"):
        publish(results, place)
    assert not server.blobs
    (results / "tiny" / "card" / "modelfiles" / "Modelfile.Q8_0").unlink()
    with pytest.raises(QuantmillError, match="no file that Ollama can load; leave out"):
        publish(results, place)


def test_a_recipes_name_as_a_tag(results: Path) -> None:
    folder = results / "tiny"
    for path in (folder / "card/modelfiles/Modelfile.Q8_0", folder / "gguf/tiny-Q8_0.json"):
        path.rename(str(path).replace("Q8_0", "Q8+x"))
    assert [tag.tag for tag in ollama.tags_of(folder, "tiny", ["Q8+x"])] == ["Q8-x"]


def test_keys_that_cannot_be_used(tmp_path: Path) -> None:
    key = tmp_path / "key"
    for kind, word in (("ed25519", "a passphrase"), ("ecdsa", "")):
        key.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", word, "-f", key], check=True)
        with pytest.raises(
            QuantmillError, match="key: no Ed25519 key of OpenSSH without a passphrase; run `olla"
        ):
            ollama_key.read(key)
        key.with_suffix(".pub").unlink()
    key.write_text("nothing", encoding="utf-8")
    with pytest.raises(QuantmillError, match="no Ed25519 key"):
        ollama_key.read(key)
