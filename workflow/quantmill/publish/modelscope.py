"""A repository of models on ModelScope, by its HTTP API; errors in one line.

Source: modelscope_hub 0.5.1 (_legacy_api.py, _upload.py), whose requests these are: files are listed; large
ones are sent to where its LFS endpoint says, unless it has them; small ones go within the commit. The token
is its client's, MODELSCOPE_API_TOKEN, and no part of any message; MODELSCOPE_ENDPOINT names another host.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urljoin, urlsplit

from quantmill.errors import QuantmillError
from quantmill.progress import Progress
from quantmill.publish.files import ByteRange, Item
from quantmill.publish.hub import Holdings, Stored, UnreachableError

if TYPE_CHECKING:
    from httpx2 import Response

HOST: Final = "https://modelscope.cn"
BRANCH: Final = "master"

_SMALL: Final = 1 << 20  # bytes of a file that goes within a commit
_MOST: Final = 3000  # files of a listing, which ends there without a word
_BLOCK: Final = 1 << 20
_SECONDS: Final = 600.0
_CURE: Final = "check the network and the name, then run it again: what was uploaded is not sent twice"
_CURES: Final = {
    401: "set MODELSCOPE_API_TOKEN to a token of your account there",
    403: "the token may not write there: check the name, or the token's rights",
}


class Repository:
    """One repository of models, at the branch `master`: it has no other that its pages show."""

    revision: Final = BRANCH
    login: Final = "set MODELSCOPE_API_TOKEN"

    def __init__(self, name: str) -> None:
        from httpx2 import Client

        self.name = name
        self._base = os.environ.get("MODELSCOPE_ENDPOINT", HOST).rstrip("/")
        self._token = os.environ.get("MODELSCOPE_API_TOKEN", "").strip()
        self._client = Client(timeout=_SECONDS, follow_redirects=False)

    @property
    def has_token(self) -> bool:
        """Whether there is a token to upload with."""
        return bool(self._token)

    @property
    def missing(self) -> str:
        """What to do where there is no such repository: its licence is chosen when it is made."""
        return f"make it at {self._base}/models/create, or check the name"

    def holdings(self) -> Holdings | None:
        """What it holds; None where there is no such repository, or none that this token sees."""
        path = f"models/{self.name}/repo/files?Revision={BRANCH}&Recursive=True"
        answer = self._ask("GET", path, missing=True)
        if answer is None:
            return None
        entries = answer.get("Files") or []
        if len(entries) >= _MOST:
            what = f"has over {_MOST} files, and tells of no more"
            raise QuantmillError(what, self.name, "take a repository of its own")
        files = {}
        for entry in entries:
            if entry.get("Type") != "tree":
                sha256 = entry.get("Sha256") or self._digest(entry["Path"])
                files[str(entry["Path"])] = Stored(int(entry["Size"]), sha256, "")
        return Holdings("", files)

    def read(self, path: str, commit: str) -> bytes:
        """A small file of it; `commit` is of no account, for only the branch can be read."""
        place = f"models/{self.name}/repo?Revision={BRANCH}&FilePath={quote(path, safe='')}"
        answer = self._send("GET", self._url(place))
        if answer.is_redirect:
            answer = self._send("GET", urljoin(self._base, answer.headers["Location"]))
        self._check("GET", answer)
        return answer.content

    def upload(
        self, items: Iterable[Item], parent: str | None, message: str, progress: Progress, room: Path
    ) -> str:
        """Upload the items and commit them together; the repository's address.

        Large files go first, one by one; one that is there already is not sent again. The protocol knows no
        `parent`, and no part of a file is written into `room`.
        """
        actions = []
        for item in items:
            small = isinstance(item.content, Path | bytes) and item.bytes <= _SMALL
            if not small:
                self._send_large(item, progress)
            data = b"".join(_blocks(item)) if small else b""
            actions.append(
                {
                    "action": "create",
                    "path": item.path,
                    "type": "normal" if small else "lfs",
                    "size": item.bytes,
                    "sha256": "" if small else item.sha256,
                    "content": base64.b64encode(data).decode(),
                    "encoding": "base64" if small else "",
                }
            )
            progress.add(len(data))
        self._ask(
            "POST",
            f"repos/models/{self.name}/commit/{BRANCH}",
            {"commit_message": message, "actions": actions},
        )
        return f"{self._base}/models/{self.name}"

    def _send_large(self, item: Item, progress: Progress) -> None:
        wanted = {"operation": "upload", "objects": [{"oid": item.sha256, "size": item.bytes}]}
        answer = self._ask("POST", f"repos/models/{self.name}/info/lfs/objects/batch", wanted) or {}
        objects = [one for one in answer.get("objects") or [] if one.get("oid") == item.sha256]
        if not objects:
            raise QuantmillError(f"does not say where {item.path} goes", self.name, _CURE)
        place = (objects[0].get("actions") or {}).get("upload", {}).get("href")
        if not place:
            progress.reuse(item.bytes)
            return

        def blocks() -> Iterator[bytes]:
            for block in _blocks(item):
                progress.add(len(block))
                yield block

        url = urljoin(self._base, place)
        self._check("PUT", self._send("PUT", url, {"Content-Length": str(item.bytes)}, blocks()))

    def _digest(self, path: str) -> str:
        return hashlib.sha256(self.read(path, "")).hexdigest()

    def _url(self, path: str) -> str:
        return f"{self._base}/api/v1/{path}"

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, missing: bool = False
    ) -> dict[str, Any] | None:
        """The `Data` of an answer; None for a 404 where it may be `missing`. QuantmillError for a refusal."""
        content = None if body is None else json.dumps(body).encode()
        answer = self._send(method, self._url(path), {"Content-Type": "application/json"}, content)
        if missing and answer.status_code == 404:
            return None
        self._check(method, answer)
        try:
            given = answer.json()
            data = given.get("Data", given)
            refused = given.get("Success") is False
        except (ValueError, AttributeError):
            raise QuantmillError("gives an answer that is no JSON", self.name, _CURE) from None
        if refused:
            raise self._refused(method, answer)
        return data if isinstance(data, dict) else {}

    def _check(self, method: str, answer: Response) -> None:
        if answer.status_code >= 300:
            raise self._refused(method, answer)

    def _send(
        self,
        method: str,
        url: str,
        headers: dict[str, str] | None = None,
        content: bytes | Iterator[bytes] | None = None,
    ) -> Response:
        """A request; the token goes to ModelScope's own host and to no other that it names."""
        from httpx2 import HTTPError, InvalidURL

        own = {}
        here = urlsplit(url)[:2] == urlsplit(self._base)[:2]
        if self._token and here:  # some endpoints know the one, some the other
            own = {"Authorization": f"Bearer {self._token}", "Cookie": f"m_session_id={self._token}"}
        try:
            return self._client.request(method, url, headers={**(headers or {}), **own}, content=content)
        except (HTTPError, InvalidURL) as error:
            why = self._hidden(" ".join(str(error).split())) or type(error).__name__
            raise UnreachableError(f"cannot be reached ({why})", self.name, _CURE) from None

    def _refused(self, method: str, answer: Response) -> QuantmillError:
        text = self._hidden(" ".join(answer.text.split())[:200])
        path = urlsplit(str(answer.request.url)).path
        what = f"ModelScope refuses {method} {path} ({answer.status_code}{f' {text}' if text else ''})"
        return QuantmillError(what, self.name, _CURES.get(answer.status_code, _CURE))

    def _hidden(self, text: str) -> str:
        return text.replace(self._token, "(token)") if self._token else text


def _blocks(item: Item) -> Iterator[bytes]:
    """The bytes of an item, in blocks."""
    if isinstance(item.content, bytes):
        yield item.content
    elif isinstance(item.content, ByteRange):
        yield from item.content.blocks()
    else:
        with item.content.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block
