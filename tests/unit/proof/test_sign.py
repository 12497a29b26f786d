"""Signatures by ssh-keygen, and keys that are none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from quantmill.errors import QuantmillError
from quantmill.proof import sign


def key(path: Path, passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", path], check=True)
    return path


def test_a_signature_is_of_the_file_and_the_key(tmp_path: Path) -> None:
    file, own = tmp_path / "lock.json", key(tmp_path / "key")
    file.write_text("{}", encoding="utf-8")
    signature = tmp_path / "lock.json.sig"
    signature.write_bytes(sign.signature(file, own))
    assert sign.fingerprint(own, "x") == sign.fingerprint(tmp_path / "key.pub", "x")
    words = ["ssh-keygen", "-Y", "check-novalidate", "-n", "quantmill", "-s", str(signature)]
    for data, good in ((b"{}", True), (b"{ }", False)):
        done = subprocess.run(words, input=data, capture_output=True, check=False)
        assert (done.returncode == 0) == good
        assert (sign.fingerprint(own, "x").encode() in done.stdout) == good
    assert sign.signature(file, own) == signature.read_bytes()  # ed25519 draws no lots
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "key",
        "key.pub",
        "lock.json",
        "lock.json.sig",
    ]


def test_what_is_no_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, cure = "config.yaml: publish.sign", "ssh-keygen -t ed25519 makes one"
    with pytest.raises(QuantmillError) as missing:
        sign.fingerprint(tmp_path / "none", where)
    assert str(missing.value) == f"{where}: no such file {tmp_path / 'none'}; name an ssh key: {cure}"
    (tmp_path / "text").write_text("no key", encoding="utf-8")
    with pytest.raises(QuantmillError) as none:
        sign.fingerprint(tmp_path / "text", where)
    assert str(none.value) == f"{where}: {tmp_path / 'text'} is no ssh key; name one: {cure}"
    own = key(tmp_path / "key")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(QuantmillError) as without:
        sign.fingerprint(own, where)
    assert (
        str(without.value)
        == f"{where}: no ssh-keygen to sign with; install OpenSSH's client, or leave `sign` out"
    )


def test_nobody_is_asked_for_a_passphrase(tmp_path: Path) -> None:
    file, own = tmp_path / "lock.json", key(tmp_path / "key", "a secret")
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(
        QuantmillError, match=r"key: cannot sign \(.*\); if it has a passphrase: ssh-add it"
    ) as error:
        sign.signature(file, own)
    assert "\n" not in str(error.value)
