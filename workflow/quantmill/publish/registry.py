"""A registry of Ollama's by its API: blobs and manifests of the OCI distribution, Ollama's parts and tokens.

Source: server/upload.go, server/images.go and server/auth.go of ollama. A blob that is there is not sent
again. Errors are one line, without the token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from quantmill.errors import QuantmillError
from quantmill.progress import Progress
from quantmill.publish import ollama_key
from quantmill.publish.hub import UnreachableError

if TYPE_CHECKING:
    from httpx2 import Response

HOST: Final = "https://registry.ollama.ai"
MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"

_LEAST_PART, _LARGEST_PART, _PARTS = 100 * 10**6, 1000 * 10**6, 64
_BLOCK: Final = 1 << 20
_SECONDS: Final = 600.0
_EMPTY: Final = base64.b64encode(hashlib.sha256(b"").hexdigest().encode()).decode()


class Blob(NamedTuple):
    """What is stored under its digest: bytes, or a whole file."""

    content: bytes | Path
    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> Blob:
        """A blob of these bytes."""
        return cls(data, len(data), hashlib.sha256(data).hexdigest())

    @property
    def digest(self) -> str:
        """As registries write it."""
        return f"sha256:{self.sha256}"

    def blocks(self, start: int, size: int) -> Iterator[bytes]:
        """Its bytes from `start`, in blocks."""
        if isinstance(self.content, bytes):
            yield self.content[start : start + size]
            return
        with self.content.open("rb") as file:
            file.seek(start)
            while size > 0:
                block = file.read(min(_BLOCK, size))
                if not block:
                    raise QuantmillError(
                        "has become shorter", self.content, "delete it to have it made again"
                    )
                size -= len(block)
                yield block


class Registry:
    """One model's place in a registry: `name` is `organisation/name`, with `https://host/` before it where
    that is not Ollama's own. The key is Ollama's, `~/.ollama/id_ed25519`.
    """

    def __init__(self, name: str, key: Path | None = None) -> None:
        from httpx2 import Client

        host, _, path = name.rpartition("//")
        address, _, self.path = path.partition("/") if host else ("", "", path)
        self.base = f"{host}//{address}" if host else HOST
        self.name = name
        self._key = key or Path("~/.ollama/id_ed25519").expanduser()
        self._token = ""
        self._client = Client(timeout=_SECONDS, follow_redirects=False)

    def manifest(self, tag: str) -> bytes | None:
        """The manifest of a tag; None where there is none."""
        answer = self._ask("GET", f"manifests/{tag}", {"Accept": MANIFEST}, missing=True)
        return None if answer.status_code == 404 else answer.content

    def has(self, blob: Blob) -> bool:
        """Whether it holds a blob."""
        return self._ask("HEAD", f"blobs/{blob.digest}", missing=True).status_code != 404

    def send(self, blob: Blob, progress: Progress) -> None:
        """Send a blob, in parts, where it is not there."""
        if self.has(blob):
            progress.reuse(blob.size)
            return
        at = self._location(self._ask("POST", "blobs/uploads/"))
        size = max(_LEAST_PART, min(_LARGEST_PART, blob.size // _PARTS))
        etag, count = hashlib.md5(usedforsecurity=False), 0
        for start in range(0, blob.size, size):
            at, digest = self._send_part(blob, at, start, min(size, blob.size - start), progress)
            etag.update(digest)
            count += 1
        query = {"digest": blob.digest, "etag": f"{etag.hexdigest()}-{count}"}
        self._ask("PUT", _with(at, query), {"Content-Type": "application/octet-stream"})

    def put_manifest(self, tag: str, manifest: bytes) -> None:
        """Give a tag a manifest: from here on it is seen."""
        self._ask("PUT", f"manifests/{tag}", {"Content-Type": MANIFEST}, manifest)

    def _send_part(self, blob: Blob, at: str, start: int, size: int, progress: Progress) -> tuple[str, bytes]:
        """Send a part: where the next one goes, and its MD5."""
        sums = []

        def blocks() -> Iterator[bytes]:
            sums.append(digest := hashlib.md5(usedforsecurity=False))
            for block in blob.blocks(start, size):
                digest.update(block)
                progress.add(len(block))
                yield block

        plain = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        headers = {"X-Redirect-Uploads": "1", "Content-Range": f"{start}-{start + size - 1}"}
        # A registry that redirects wants the bytes elsewhere; it answers before it reads any.
        answer = self._ask("PATCH", at, plain | headers, blocks)
        following = self._location(answer)
        if answer.status_code == 307:
            self._ask("PUT", urljoin(at, answer.headers["Location"]), plain, blocks, signed=False)
        return following, sums[-1].digest()

    def _location(self, answer: Response) -> str:
        place = answer.headers.get("Docker-Upload-Location") or answer.headers.get("Location")
        if not place:
            raise QuantmillError("does not say where to upload to", self.name, _CURE)
        return urljoin(str(answer.request.url), place)

    def _ask(
        self,
        method: str,
        place: str,
        headers: Mapping[str, str] | None = None,
        content: bytes | Callable[[], Iterator[bytes]] | None = None,
        *,
        missing: bool = False,
        signed: bool = True,
    ) -> Response:
        """The answer to a request; a 404 only where it may be `missing`. QuantmillError for a refusal."""
        from httpx2 import HTTPError

        url = place if "//" in place else f"{self.base}/v2/{self.path}/{place}"
        for attempt in (1, 2):
            own = {"Authorization": f"Bearer {self._token}"} if self._token and signed else {}
            given = {**(headers or {}), **own}
            body = content() if callable(content) else content
            try:
                answer = self._client.request(method, url, headers=given, content=body)
            except HTTPError as error:
                why = " ".join(str(error).split()) or type(error).__name__
                raise UnreachableError(f"cannot be reached ({why})", self.name, _CURE) from None
            again = answer.status_code == 401 and attempt == 1 and signed
            if not (again and (challenge := answer.headers.get("WWW-Authenticate"))):
                break
            self._token = self._new_token(challenge)
        if answer.status_code >= 400 and not (missing and answer.status_code == 404):
            raise self._refused(method, urlsplit(url).path, answer)
        return answer

    def _new_token(self, challenge: str) -> str:
        """A token for a challenge: the request for it is signed with Ollama's key."""
        given = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        nonce = base64.urlsafe_b64encode(os.urandom(16)).rstrip(b"=").decode()
        values = [("service", given.get("service", ""))]
        values += [("scope", scope) for scope in given.get("scope", "").split(" ")]
        url = _with(given.get("realm", ""), [*values, ("ts", str(int(time.time()))), ("nonce", nonce)])
        key = ollama_key.read(self._key)
        signature = ollama_key.authorization(key, f"GET,{url},{_EMPTY}".encode())
        answer = self._ask("GET", url, {"Authorization": signature}, signed=False)
        try:
            return str(json.loads(answer.content)["token"])
        except (ValueError, KeyError, TypeError):
            raise QuantmillError("gives no token", self.name, _CURES[401]) from None

    def _refused(self, method: str, path: str, answer: Response) -> QuantmillError:
        text = " ".join(answer.text.split())[:200]
        text = text.replace(self._token, "(token)") if self._token else text
        why = f"{answer.status_code}{f' {text}' if text else ''}"
        return QuantmillError(
            f"the registry refuses {method} {path} ({why})", self.name, _CURES.get(answer.status_code, _CURE)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()


def _with(url: str, more: Mapping[str, str] | list[tuple[str, str]]) -> str:
    """An address with more in its query, sorted by name, as Go writes it."""
    parts = urlsplit(url)
    values = [
        *parse_qsl(parts.query, keep_blank_values=True),
        *(more.items() if isinstance(more, Mapping) else more),
    ]
    return urlunsplit(parts._replace(query=urlencode(sorted(values, key=lambda pair: pair[0]))))


_CURE: Final = "check the network and the name, then run it again: what was uploaded is not sent twice"
_CURES: Final = {
    401: "add ~/.ollama/id_ed25519.pub to your account there",
    403: "the key may not write there: check the name, or add ~/.ollama/id_ed25519.pub to its account",
}
