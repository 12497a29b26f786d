"""Signatures of Ollama's key: Ed25519 of RFC 8032, from an OpenSSH private key without a passphrase.

No package of the environment has it, and ssh-keygen signs in a form of its own. A signature takes some
milliseconds, which is enough for one per registry.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from pathlib import Path
from typing import Final, NamedTuple

from quantmill.errors import QuantmillError

_P: Final = 2**255 - 19
_L: Final = 2**252 + 27742317777372353535851937790883648493
_D: Final = -121665 * pow(121666, -1, _P) % _P
_Y: Final = 4 * pow(5, -1, _P) % _P
_X: Final = 15112221349535400772501151409588531511454012693041857206046113283949847762202
_Point = tuple[int, int, int, int]
_BASE: Final[_Point] = (_X, _Y, 1, _X * _Y % _P)
_MAGIC: Final = b"openssh-key-v1\0"
_CURE: Final = "run `ollama` once, which makes it, or copy the one whose public half the registry knows"


class Key(NamedTuple):
    """A key: its seed, its public half, and that as OpenSSH writes it (without the type's name)."""

    seed: bytes
    public: bytes
    blob: bytes

    def signature(self, message: bytes) -> bytes:
        """The 64 bytes that sign a message."""
        digest = hashlib.sha512(self.seed).digest()
        scalar = (int.from_bytes(digest[:32], "little") & (1 << 254) - 8) | 1 << 254
        r = int.from_bytes(hashlib.sha512(digest[32:] + message).digest(), "little") % _L
        point = _compressed(_times(r, _BASE))
        h = int.from_bytes(hashlib.sha512(point + self.public + message).digest(), "little") % _L
        return point + ((r + h * scalar) % _L).to_bytes(32, "little")

    def authorization(self, message: bytes) -> str:
        """Key and signature as Ollama's `Authorization` has them."""
        return ":".join(base64.b64encode(part).decode() for part in (self.blob, self.signature(message)))


def read(path: Path) -> Key:
    """The key in a file of OpenSSH. QuantmillError where there is none that can be used."""
    try:
        lines = path.read_text("ascii").split("-----")[2].split()
        data = base64.b64decode("".join(lines), validate=True)
        return _parsed(data)
    except OSError as error:
        raise QuantmillError(f"cannot be read ({error.strerror})", path, _CURE) from None
    except (ValueError, IndexError, struct.error):
        raise QuantmillError("no Ed25519 key of OpenSSH without a passphrase", path, _CURE) from None


def _parsed(data: bytes) -> Key:
    if not data.startswith(_MAGIC):
        raise ValueError
    cipher, data = _text(data[len(_MAGIC) :])
    for _ in range(2):  # the passphrase's function and its options
        _, data = _text(data)
    (count,) = struct.unpack_from(">I", data)
    blob, data = _text(data[4:])
    private, _ = _text(data)
    kind, rest = _text(private[8:])
    public, rest = _text(rest)
    seed, _ = _text(rest)
    if (cipher, count, kind, len(public), len(seed)) != (b"none", 1, b"ssh-ed25519", 32, 64):
        raise ValueError
    return Key(seed[:32], public, blob)


def _text(data: bytes) -> tuple[bytes, bytes]:
    (size,) = struct.unpack_from(">I", data)
    if size > len(data) - 4:
        raise ValueError
    return data[4 : 4 + size], data[4 + size :]


def _sum(one: _Point, other: _Point) -> _Point:
    a, b = (one[1] - one[0]) * (other[1] - other[0]) % _P, (one[1] + one[0]) * (other[1] + other[0]) % _P
    c, d = 2 * one[3] * other[3] * _D % _P, 2 * one[2] * other[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _times(scalar: int, point: _Point) -> _Point:
    total: _Point = (0, 1, 1, 0)
    while scalar:
        total = _sum(total, point) if scalar & 1 else total
        point, scalar = _sum(point, point), scalar >> 1
    return total


def _compressed(point: _Point) -> bytes:
    inverse = pow(point[2], -1, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")
