"""A registry of Ollama's on loopback, in memory: blobs, parts, redirects, manifests, and tokens."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback import Handler, running

TOKEN = "a-secret-token"


class Registry(ThreadingHTTPServer):
    """The server and what it holds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.uploads: dict[str, list[tuple[str, bytes]]] = {}
        self.asked: list[str] = []
        self.signatures: list[tuple[str, str]] = []  # of the requests for a token: the address, Authorization
        self.asks_for_token = self.redirects = False
        self.expired = 0  # how many parts a token is too old for
        self.refuses: dict[str, int] = {}  # by method and beginning of the path: the status

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving() -> Iterator[Registry]:
    """A registry while the block runs."""
    with running(Registry()) as registry:
        yield registry


class _Handler(Handler):
    server: Registry

    def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send(status, data, **headers)

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
        server = self.server
        server.asked.append(f"{self.command} {path}")
        if path == "/token":
            server.signatures.append((f"{server.address}{self.path}", self.headers["Authorization"]))
            self.answer(200, json.dumps({"token": TOKEN}).encode())
            return
        for start, status in server.refuses.items():
            if f"{self.command} {path}".startswith(start):
                self.answer(status, f"no: {self.headers.get('Authorization')}".encode())
                return
        if server.asks_for_token and not path.startswith("/direct/"):
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                where = (
                    f'Bearer realm="{server.address}/token",service="ollama",scope="repository:pull,push x"'
                )
                self.answer(401, WWW_Authenticate=where)
                return
        elif path.startswith("/direct/"):
            assert "Authorization" not in self.headers
        for method, pattern, respond in _ROUTES:
            if self.command == method and (result := re.fullmatch(pattern, path)):
                respond(self, body, query, *result.groups())
                return
        self.answer(404)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_any  # noqa: N815

    def has(self, _: bytes, query: Any, digest: str) -> None:
        self.answer(200 if digest in self.server.blobs else 404)

    def begin(self, _: bytes, query: Any) -> None:
        number = str(len(self.server.uploads))
        self.server.uploads[number] = []
        self.answer(202, Location=f"/upload/{number}")

    def part(self, body: bytes, query: Any, number: str) -> None:
        if self.server.expired:
            self.server.expired -= 1
            self.answer(
                401, WWW_Authenticate=f'Bearer realm="{self.server.address}/token",service="",scope=""'
            )
            return
        at = self.headers["Content-Range"]
        where = {"Docker_Upload_Location": f"{self.server.address}/upload/{number}?more=1"}
        if self.server.redirects:
            self.answer(307, Location=f"{self.server.address}/direct/{number}/{at}", **where)
            return
        self.server.uploads[number].append((at, body))
        self.answer(202, **where)

    def direct(self, body: bytes, query: Any, number: str, at: str) -> None:
        self.server.uploads[number].append((at, body))
        self.answer(200)

    def end(self, _: bytes, query: dict[str, list[str]], number: str) -> None:
        parts = self.server.uploads[number]
        data, start = b"", 0
        for at, part in parts:
            assert at == f"{start}-{start + len(part) - 1}"
            start += len(part)
            data += part
        md5 = hashlib.md5(b"".join(hashlib.md5(part).digest() for _, part in parts)).hexdigest()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if (query["digest"], query["etag"]) != ([digest], [f"{md5}-{len(parts)}"]):
            self.answer(400, b"another digest")
            return
        self.server.blobs[digest] = data
        self.answer(201)

    def manifest(self, _: bytes, query: Any, tag: str) -> None:
        held = self.server.manifests.get(tag)
        self.answer(200 if held else 404, held or b"")

    def tag(self, body: bytes, query: Any, tag: str) -> None:
        named = json.loads(body)
        assert all(one["digest"] in self.server.blobs for one in [named["config"], *named["layers"]])
        self.server.manifests[tag] = body
        self.answer(201)


_ROUTES = (
    ("HEAD", r"/v2/me/tiny/blobs/(sha256:\w{64})", _Handler.has),
    ("POST", r"/v2/me/tiny/blobs/uploads/", _Handler.begin),
    ("PATCH", r"/upload/(\d+)", _Handler.part),
    ("PUT", r"/direct/(\d+)/(\d+-\d+)", _Handler.direct),
    ("PUT", r"/upload/(\d+)", _Handler.end),
    ("GET", r"/v2/me/tiny/manifests/(.+)", _Handler.manifest),
    ("PUT", r"/v2/me/tiny/manifests/(.+)", _Handler.tag),
)
