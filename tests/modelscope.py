"""ModelScope on loopback, in memory: as much of its API as publishing speaks, after its client's requests."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback import Handler, running

TOKEN = "ms-secret-token"


class ModelScope(ThreadingHTTPServer):
    """The server and what it holds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.objects_at = self.address  # where it has large files sent
        self.asked: list[str] = []
        self.tokens: list[str | None] = []  # that came with each request
        self.tells_digests = True
        self.rejects = ""  # the message with which a commit is rejected

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving() -> Iterator[ModelScope]:
    """A server while the block runs."""
    with running(ModelScope()) as server:
        yield server


class _Handler(Handler):
    server: ModelScope

    def answer(self, status: int, data: Any, success: bool = True) -> None:
        body = {"Code": status, "Success": success, "Data": data, "Message": "" if success else data}
        self.send(status, json.dumps(body).encode())

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
        server = self.server
        server.asked.append(f"{self.command} {path}")
        server.tokens.append(self.headers.get("Authorization") or self.headers.get("Cookie"))
        if self.headers.get("Authorization", f"Bearer {TOKEN}") != f"Bearer {TOKEN}":
            return self.answer(401, f"no such token: {self.headers['Authorization']}", success=False)
        _, api, _, *rest = path.split("/")
        if api == "lfs":
            server.objects[hashlib.sha256(body).hexdigest()] = body
            return self.send(200, b"")
        name = "/".join(rest[2:4] if rest[0] == "repos" else rest[1:3])
        if name not in server.repositories:
            return self.answer(404, "no such repository", success=False)
        files = server.repositories[name]
        if path.endswith("/repo/files"):
            entries = [
                {
                    "Path": file,
                    "Size": len(data),
                    "Type": "blob",
                    "Sha256": hashlib.sha256(data).hexdigest() if server.tells_digests else "",
                }
                for file, data in files.items()
            ]
            return self.answer(200, {"Files": [*entries, {"Path": "plots", "Size": 0, "Type": "tree"}]})
        if path.endswith("/repo"):
            return self.send(200, files[query["FilePath"][0]])
        if path.endswith("/objects/batch"):
            wanted = json.loads(body)["objects"]
            there = {"actions": {}}
            away = {"actions": {"upload": {"href": f"{server.objects_at}/lfs/put/object"}}}
            objects = [one | (there if one["oid"] in server.objects else away) for one in wanted]
            return self.answer(200, {"objects": objects})
        if server.rejects:
            return self.answer(200, server.rejects, success=False)
        for action in json.loads(body)["actions"]:
            large = action["type"] == "lfs"
            data = server.objects[action["sha256"]] if large else base64.b64decode(action["content"])
            assert len(data) == action["size"] and action["action"] == "create"
            files[action["path"]] = data
        return self.answer(200, {})

    do_GET = do_POST = do_PUT = handle_any  # noqa: N815
