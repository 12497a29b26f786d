"""Ollama's key, `~/.ollama/id_ed25519`, and what it signs: the `Authorization` of a request for a token."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Final

from quantmill.errors import QuantmillError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_CURE: Final = "run `ollama` once, which makes it, or copy the one whose public half the registry knows"


def read(path: Path) -> Ed25519PrivateKey:
    """The key in a file of OpenSSH. QuantmillError where there is none that can be used."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise QuantmillError(f"cannot be read ({error.strerror})", path, _CURE) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise QuantmillError("no Ed25519 key of OpenSSH without a passphrase", path, _CURE)
    return key


def authorization(key: Ed25519PrivateKey, message: bytes) -> str:
    """The public half as OpenSSH writes it and the signature of a message, as Ollama's client sends them."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1]
    return f"{public.decode()}:{base64.b64encode(key.sign(message)).decode()}"
