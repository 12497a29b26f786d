"""Publishing to a hub on loopback by the hub's own client: what goes, what stays, what is refused."""

import argparse
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import modelscope
from hub import TOKEN, Hub, serving
from quantmill.errors import QuantmillError
from quantmill.formats.checks import Checks
from quantmill.formats.ggufio import read_header
from quantmill.formats.proof import LOCK, Lock
from quantmill.progress import Log
from quantmill.publish import split as splitting
from quantmill.publish.upload import main
from quantmill.spec import canonical
from reports import complete

# What the hub's client says of the library that it stands on.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

MODEL = Path(__file__).parents[2] / "data" / "tiny-llama.gguf"
REPO = "me/tiny-GGUF"
WORKFLOW = Path(__file__).parents[3] / "workflow"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


class Publisher:
    """The results of a model, and the command over them."""

    def __init__(self, folder: Path, hub: Hub, name: str = "tiny") -> None:
        self.folder, self.hub, self.name = folder, hub, name
        self.results = folder / "results" / name
        for recipe in ("Q8_0", "Q4_K_M"):
            self.quant(recipe, recipe.encode() * 5000)
            self.write(f"recipes/{recipe}.yaml", b"base: " + recipe.encode())
            self.write(f"plans/{recipe}.tsv", b"name\trole\n")
            self.write(f"card/modelfiles/Modelfile.{recipe}", b"FROM x")
        self.write("card/README.md", b"---\nlicense: mit\n---\n# tiny\n![bits](plots/bits.svg)\n")
        self.write("card/plots/bits.svg", b"<svg/>")
        self.write("card/plots/left-over.svg", b"<svg/>")
        self.write("imatrix.gguf", b"imatrix" * 100)
        self.lock()
        self.write("bench/Q8_0/kld.json", b"{}")
        self.write("bench/Q8_0/speed.json", b"of an older config")

    def write(self, name: str, data: bytes) -> None:
        path = self.results / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def quant(self, recipe: str, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        facts = {
            "file": f"{self.name}-{recipe}.gguf",
            "bytes": len(data),
            "sha256": sha256,
            "tensors": 1,
        }
        self.write(f"gguf/{self.name}-{recipe}.gguf", data)
        self.write(f"gguf/{self.name}-{recipe}.json", json.dumps(facts).encode())
        self.checked(recipe)
        return sha256

    def checked(self, recipe: str, *failures: str) -> None:
        """The check of a recipe's file, with what is wrong with it."""
        report = {"file": f"{self.name}-{recipe}.gguf", "tokenizer": "none", "tried": "read"}
        report["failures"] = list(failures)
        self.write(f"checks/{recipe}.json", json.dumps(complete(Checks, report)).encode())

    def lock(self) -> None:
        """A lock of the files, and a statement of each."""
        files = {name: f"{self.name}-{name}.gguf" for name in ("Q8_0", "Q4_K_M")}
        recipes = {
            name: {"published": [{"file": file, "bytes": 1, "sha256": "0"}]} for name, file in files.items()
        }
        LOCK.write(self.results / "lock.json", complete(Lock, {"recipes": recipes}))
        for file in files.values():
            self.write(f"statements/{file}.derivation.json", b"{}")

    def spec(self, confirm: bool, **settings: Any) -> dict[str, Any]:
        model = {
            "repo": REPO,
            "revision": "main",
            "private": False,
            "include": ["imatrix", "recipes"],
            "overwrite": False,
            "split": 50 * 10**9,
            "recipes": ["Q8_0", "Q4_K_M"],
            "signed": False,
            "measured": ["bench/Q8_0/kld.json"],
        }
        return {"config": {"confirm": confirm, "models": {self.name: model | settings}}}

    def split(self, limit: int = 50 * 10**9) -> None:
        """The stage that comes before: the names of the parts of larger files."""
        config = {"model": self.name, "recipes": ["Q8_0", "Q4_K_M"], "split": limit}
        out = self.results / "parts.json"
        splitting.main(
            argparse.Namespace(spec={"config": config}, results=self.results, out=out),
            Log(self.folder / "parts.log"),
        )

    def start(self, token: str = TOKEN) -> subprocess.Popen[str]:
        """The command, uploading in a process of its own."""
        self.split()
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(WORKFLOW),
            "HF_ENDPOINT": self.hub.address,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(self.folder / "home"),
            "HF_TOKEN": token,
        }
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "quantmill.publish.upload",
                "--spec",
                canonical(self.spec(True)),
                "--results",
                self.results.parent,
                "--log",
                self.folder / "publish.log",
            ],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, confirm: bool, token: str | None, **settings: Any) -> str:
        """The same within this process; what it prints."""
        self.split(settings.get("split", 50 * 10**9))
        args = argparse.Namespace(spec=self.spec(confirm, **settings), results=self.results.parent)
        log, out = self.folder / "publish.log", io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
            patch.setattr(constants, "ENDPOINT", self.hub.address)
            template = f"{self.hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
            patch.setattr(constants, "HF_TOKEN_PATH", str(self.folder / "token"))
            patch.delenv("HF_TOKEN", raising=False)
            if token is not None:
                patch.setenv("HF_TOKEN", token)
            main(args, Log(log))
        assert set(out.getvalue().splitlines()) <= set(log.read_text("utf-8").splitlines())
        return out.getvalue()

    def publish(self, confirm: bool = True, token: str | None = TOKEN, **settings: Any) -> dict[str, str]:
        """The files and their states, as shown."""
        lines = self.run(confirm, token, **settings).splitlines()
        first = next(number for number, line in enumerate(lines) if line.startswith("state")) + 1
        rows = [line.split() for line in lines[first:] if len(line.split()) in (3, 4) and ": " not in line]
        return {path: state for state, _, path, *_ in rows}

    def refused(self, token: str | None = TOKEN, **settings: Any) -> str:
        """The one line with which an upload ends."""
        with pytest.raises(QuantmillError) as error:
            self.run(True, token, **settings)
        assert "\n" not in str(error.value)
        return str(error.value)


@pytest.fixture
def publisher(tmp_path: Path, hub: Hub) -> Publisher:
    return Publisher(tmp_path, hub)


WITHHELD_Q8 = {
    "policy": "dominated",
    "withheld": [
        {
            "recipe": "Q8_0",
            "file": "tiny-Q8_0.gguf",
            "bytes": 1,
            "reason": "dominated",
            "rival": "Q4_K_M",
            "rival_bytes": 1,
            "figure": "",
            "measure": "kld",
            "difference": {"mean": 1.0, "low": 0.5, "high": 1.5},
        }
    ],
}

ALL = {
    "README.md",
    "plots/bits.svg",
    "modelfiles/Modelfile.Q8_0",
    "modelfiles/Modelfile.Q4_K_M",
    "tiny-Q8_0.gguf",
    "tiny-Q4_K_M.gguf",
    "lock.json",
    "tiny-Q4_K_M.gguf.derivation.json",
    "tiny-Q8_0.gguf.derivation.json",
    "imatrix.gguf",
    "recipes/Q8_0.yaml",
    "recipes/Q4_K_M.yaml",
    "plans/Q8_0.tsv",
    "plans/Q4_K_M.tsv",
    "SHA256SUMS",
}


def test_shown_then_uploaded_then_only_what_differs(publisher: Publisher, hub: Hub) -> None:
    assert publisher.publish(confirm=False) == dict.fromkeys(ALL, "new")
    assert not any(line.startswith(("POST", "PUT")) for line in hub.asked)
    publisher.publish()
    there = hub.repositories[REPO]
    assert set(there) == ALL
    assert there["tiny-Q8_0.gguf"] == (publisher.results / "gguf" / "tiny-Q8_0.gguf").read_bytes()
    for line in there["SHA256SUMS"].decode().splitlines()[1:]:
        digest, path = line.split("  ")
        assert hashlib.sha256(there[path]).hexdigest() == digest
    assert len(hub.sent) == 3

    assert "me/tiny-GGUF: nothing differs" in publisher.run(True, TOKEN)
    assert set(publisher.publish().values()) == {"unchanged"}
    assert len(hub.sent) == 3
    head = hub.head(REPO)

    changed = publisher.quant("Q4_K_M", b"another" * 4000)
    publisher.write("card/README.md", b"# tiny, again\n")
    states = publisher.publish(confirm=False)
    differing = {"README.md", "tiny-Q4_K_M.gguf", "SHA256SUMS"}
    assert {path for path, state in states.items() if state == "changed"} == differing
    # the picture that the card no longer shows was published, and stays
    assert states["plots/bits.svg"] == "old"
    assert hub.head(REPO) == head
    publisher.publish()
    assert hub.sent[3:] == [changed]
    assert "plots/bits.svg" in hub.repositories[REPO]
    assert b"plots/bits.svg" in hub.repositories[REPO]["SHA256SUMS"]


def test_a_projector_goes_into_the_repository_of_its_language_model(publisher: Publisher, hub: Hub) -> None:
    """Its files and their statements lie beside the model's, all else in a folder of its name; one card."""
    seer = Publisher(publisher.folder, hub, "seer")
    seer.split()
    seer.write("card/withheld.json", json.dumps(WITHHELD_Q8).encode())
    beside = seer.spec(False)["config"]["models"]["seer"] | {"measured": []}
    rows = publisher.publish(together={"seer": beside})
    kept = {"seer-Q4_K_M.gguf", "seer-Q4_K_M.gguf.derivation.json"}
    apart = {"lock.json", "imatrix.gguf", "recipes/Q4_K_M.yaml", "plans/Q4_K_M.tsv"}
    assert set(rows) == set(hub.repositories[REPO]) == ALL | kept | {f"seer/{path}" for path in apart}
    assert hub.repositories[REPO]["README.md"] == (publisher.results / "card" / "README.md").read_bytes()
    assert b"seer-Q4_K_M.gguf\n" in hub.repositories[REPO]["SHA256SUMS"]
    seer.checked("Q4_K_M", "a block is NaN")
    assert "seer-Q4_K_M.gguf failed its check: a block is NaN" in publisher.refused(together={"seer": beside})


def test_modelscope_beside_the_hub_and_alone(
    publisher: Publisher, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", modelscope.TOKEN)
    with modelscope.serving() as server:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.address)
        out = publisher.run(False, TOKEN, modelscope="you/tiny")
        assert f"tiny -> you/tiny (master, which is not there: make it at {server.address}/models" in out
        line = publisher.refused(modelscope="you/tiny")
        assert line.startswith("you/tiny: no such repository; make it at ") and not hub.sent
        server.repositories["you/tiny"] = {}
        out = publisher.run(True, TOKEN, modelscope="you/tiny")
        assert f"you/tiny: {server.address}/models/you/tiny" in out
        assert server.repositories["you/tiny"] == hub.repositories[REPO]
        (publisher.results / "parts.json").unlink()
        out = publisher.run(True, None, modelscope="you/tiny", repo=None)
        assert "you/tiny: nothing differs" in out
        monkeypatch.delenv("MODELSCOPE_API_TOKEN")
        line = publisher.refused(None, modelscope="you/tiny", repo=None)
        assert line == "you/tiny: no token to upload with; set MODELSCOPE_API_TOKEN"


def test_the_proof_of_this_lock_goes_along_and_of_no_other(publisher: Publisher, hub: Hub) -> None:
    report = {"mode": "all", "files": [], "lock": "of another"}
    publisher.write("verify.json", json.dumps(report).encode())
    publisher.write("lock.json.sig", b"of a config that signed")
    assert publisher.publish(confirm=False).keys() == ALL
    sha256 = hashlib.sha256((publisher.results / "lock.json").read_bytes()).hexdigest()
    publisher.write("verify.json", json.dumps(report | {"lock": sha256}).encode())
    publisher.write("statements/tiny.gguf.conversion.json", b"{}")
    more = {"verify.json", "lock.json.sig", "tiny.gguf.conversion.json"}
    assert publisher.publish(confirm=False, signed=True).keys() == ALL | more


def test_a_withheld_recipe_stays_at_home(publisher: Publisher, hub: Hub) -> None:
    publisher.write("card/withheld.json", json.dumps(WITHHELD_Q8).encode())
    publisher.publish(include=["measurements"])
    left = {"README.md", "plots/bits.svg", "modelfiles/Modelfile.Q4_K_M", "tiny-Q4_K_M.gguf", "SHA256SUMS"}
    left |= {"withheld.json", "lock.json", "tiny-Q4_K_M.gguf.derivation.json"}
    assert set(hub.repositories[REPO]) == left | {"bench/Q8_0/kld.json"}


def test_a_recipe_in_several_files(publisher: Publisher, hub: Hub) -> None:
    parts = []
    for number in (1, 2):
        name, data = f"tiny-Q8_0/tiny-Q8_0-0000{number}-of-00002.gguf", bytes([number]) * 100
        publisher.write(f"gguf/{name}", data)
        parts.append({"file": name, "bytes": 100, "sha256": hashlib.sha256(data).hexdigest()})
    facts = {
        "file": parts[0]["file"],
        "bytes": 200,
        "sha256": "0" * 64,
        "parts": parts,
        "tensors": 2,
    }
    publisher.write("gguf/tiny-Q8_0.json", json.dumps(facts).encode())
    publisher.publish()
    assert set(hub.repositories[REPO]) == ALL - {"tiny-Q8_0.gguf"} | {part["file"] for part in parts}


def test_a_file_over_the_limit_goes_in_parts(publisher: Publisher, hub: Hub) -> None:
    whole = MODEL.read_bytes()
    publisher.quant("Q8_0", whole)
    states = publisher.publish(split=2_000_000)
    parts = {f"tiny-Q8_0/tiny-Q8_0-{number:05}-of-00004.gguf" for number in (1, 2, 3, 4)}
    assert set(states) == ALL - {"tiny-Q8_0.gguf"} | parts
    there = hub.repositories[REPO]
    assert all(len(there[part]) <= 2_000_000 for part in parts)
    folder = publisher.folder / "downloaded"
    folder.mkdir()
    for part in parts:
        (folder / Path(part).name).write_bytes(there[part])
    joined, original = read_header(folder / "tiny-Q8_0-00001-of-00004.gguf"), read_header(MODEL)
    assert [tensor.name for tensor in joined.tensors] == [tensor.name for tensor in original.tensors]
    for got, had in zip(joined.tensors, original.tensors, strict=True):
        shard = joined.shards[got.shard].read_bytes()
        assert shard[got.offset : got.offset + got.bytes] == whole[had.offset : had.offset + had.bytes]
    assert {key: joined.kv[key] for key in original.kv} == original.kv
    assert not (publisher.results / ".publish").exists()
    named = json.loads((publisher.results / "parts.json").read_text("utf-8"))
    assert list(named) == ["Q8_0"]
    assert {p["file"]: (p["bytes"], p["sha256"]) for p in named["Q8_0"]} == {
        part: (len(there[part]), hashlib.sha256(there[part]).hexdigest()) for part in parts
    }
    assert set(publisher.publish(split=2_000_000).values()) == {"unchanged"}


def test_parts_that_are_not_the_files_own_are_refused(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.quant("Q8_0", MODEL.read_bytes())
    publisher.split(2_000_000)
    monkeypatch.setattr(publisher, "split", lambda limit: None)
    assert publisher.refused(split=3_000_000).startswith(
        "tiny-Q8_0.gguf: is split otherwise than in parts.json"
    )


def test_what_cannot_be_split(publisher: Publisher) -> None:
    publisher.quant("Q8_0", MODEL.read_bytes())
    line = publisher.refused(split=1_000_000)
    assert "tiny-Q8_0.gguf: output.weight alone has 1,048,576 bytes; " in line
    assert line.endswith("give `split` a larger size under publish")


def test_a_connection_cut_in_the_middle_is_made_again(publisher: Publisher, hub: Hub) -> None:
    sha256 = publisher.quant("Q8_0", b"x" * 3_000_000)
    hub.cuts[sha256] = 1
    publisher.publish()
    assert set(hub.repositories[REPO]) == ALL
    assert hub.sent.count(sha256) == 1


def test_an_upload_that_was_killed_goes_on(publisher: Publisher, hub: Hub) -> None:
    last = publisher.quant("Q8_0", b"x" * 3_000_000)
    hub.cuts[last] = 1
    with publisher.start() as running:
        hub.on_cut = lambda: os.kill(running.pid, signal.SIGKILL)
        running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL
    # nothing is seen of what was sent before
    assert hub.repositories[REPO] == {}
    before = list(hub.sent)
    assert before
    publisher.publish()
    assert set(hub.repositories[REPO]) == ALL
    assert len(hub.sent) == len(set(hub.sent))
    assert hub.sent[len(before) :][0] == last


def test_files_of_others_are_named_and_left_alone(publisher: Publisher, hub: Hub) -> None:
    hub.put(REPO, "notes.txt", b"mine")
    hub.put(REPO, "theirs.gguf", b"theirs")
    hub.put(REPO, ".gitattributes", b"*.gguf filter=lfs")
    assert publisher.publish() == dict.fromkeys(ALL, "new") | {
        "notes.txt": "foreign",
        "theirs.gguf": "foreign",
    }
    assert hub.repositories[REPO]["notes.txt"] == b"mine"
    assert b"notes.txt" not in hub.repositories[REPO]["SHA256SUMS"]


def test_what_others_put_under_our_names_is_kept_unless_said(publisher: Publisher, hub: Hub) -> None:
    publisher.publish()
    hub.put(REPO, "README.md", b"# edited on the hub")
    hub.put(REPO, "tiny-Q8_0.gguf", b"another model")
    states = publisher.publish(confirm=False)
    assert {path for path, state in states.items() if state == "edited"} == {"README.md", "tiny-Q8_0.gguf"}
    assert publisher.refused() == (
        "me/tiny-GGUF: README.md, tiny-Q8_0.gguf: not as published from here, and would be lost; keep a copy"
        " and say publish: {overwrite: true}, or choose another repository"
    )
    assert hub.repositories[REPO]["README.md"] == b"# edited on the hub"
    publisher.publish(overwrite=True)
    assert set(publisher.publish().values()) == {"unchanged"}


def test_a_change_on_the_hub_during_the_upload_is_not_lost(publisher: Publisher, hub: Hub) -> None:
    publisher.publish()
    publisher.quant("Q8_0", b"again" * 1000)
    hub.on_commit = lambda: hub.put(REPO, "README.md", b"# just now")
    line = publisher.refused()
    assert line.startswith("me/tiny-GGUF: cannot be committed to (")
    assert "somebody else changed the repository meanwhile" in line
    assert hub.repositories[REPO]["README.md"] == b"# just now"


def test_a_rejected_token_is_one_line(publisher: Publisher) -> None:
    with publisher.start(token="hf_wrong_one") as running:
        out, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert not out
    (line,) = err.splitlines()
    assert line.startswith("error: me/tiny-GGUF: cannot be read (")
    assert line.endswith("the token is not accepted: run `hf auth login`, or set HF_TOKEN")
    assert "hf_wrong_one" not in err + (publisher.folder / "publish.log").read_text("utf-8")


def test_a_token_without_the_right_to_write_is_not_shown(publisher: Publisher, hub: Hub) -> None:
    hub.read_only = True
    line = publisher.refused()
    assert line.startswith("me/tiny-GGUF: cannot be made (403 Forbidden: no right to write: Bearer (token).")
    assert "the token may not write there: make one that may, and run `hf auth login`" in line


def test_no_token_at_all(publisher: Publisher, hub: Hub) -> None:
    assert publisher.publish(confirm=False, token=None) == dict.fromkeys(ALL, "new")
    assert publisher.refused(token=None) == ("me/tiny-GGUF: no token to upload with; run `hf auth login`")
    assert not hub.repositories


def test_a_token_that_no_header_can_hold_is_not_shown(publisher: Publisher) -> None:
    line = publisher.refused(token="hf_seße\x01cret")
    assert "cret" not in line


def test_without_the_hub_the_files_are_shown_all_the_same(publisher: Publisher, hub: Hub) -> None:
    hub.shutdown()
    hub.server_close()
    assert set(publisher.publish(confirm=False).values()) == {"unknown"}
    assert publisher.refused().startswith("me/tiny-GGUF: cannot be read (")


def test_a_file_that_changed_since_it_was_made_is_refused(publisher: Publisher, hub: Hub) -> None:
    path = publisher.results / "gguf" / "tiny-Q8_0.gguf"
    path.write_bytes(path.read_bytes()[::-1])
    line = publisher.refused()
    assert "tiny-Q8_0.gguf: has other bytes than when it was made; delete it to have it made again" in line
    path.write_bytes(b"short")
    assert "has 5 bytes, not 20,000" in publisher.refused()
    assert not hub.repositories[REPO]


def test_a_file_that_failed_its_check_is_not_uploaded(publisher: Publisher, hub: Hub) -> None:
    publisher.checked("Q8_0", "2 of the 9 blocks of a.weight are NaN or infinite, the first at 3")
    assert publisher.publish(confirm=False) == dict.fromkeys(ALL, "new")
    line = (
        "tiny-Q8_0.gguf failed its check: 2 of the 9 blocks of a.weight are NaN or infinite, the first at 3"
    )
    assert publisher.refused() == f"me/tiny-GGUF: {line}; make it again, or leave it out"
    assert not hub.repositories
    publisher.checked("Q8_0")
    publisher.publish()
    assert hub.repositories
