"""A Hugging Face hub on loopback: repositories in memory, as much of the protocol as the client speaks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from socket import SHUT_RDWR
from typing import Any
from urllib.parse import unquote, urlsplit

from loopback import Handler, running

LARGE = (".gguf", ".dat")
TOKEN = "hf_test_token"


class Hub(ThreadingHTTPServer):
    """The server and what it holds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.heads: dict[str, int] = {}
        self.objects: dict[str, bytes] = {}
        self.sent: list[str] = []  # sha256 of each large file that arrived
        self.cuts: dict[str, int] = {}  # how often the connection is cut in the middle of a large file
        self.on_cut: Callable[[], None] = lambda: None
        self.on_commit: Callable[[], None] = lambda: None
        self.asked: list[str] = []
        self.read_only = False  # refuses whatever writes, and says who asked

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def head(self, repo: str) -> str:
        return f"{self.heads.setdefault(repo, 1):040x}"

    def put(self, repo: str, path: str, data: bytes) -> None:
        """A file in a repository, from elsewhere."""
        self.repositories.setdefault(repo, {})[path] = data
        self.heads[repo] = self.heads.get(repo, 0) + 1
        self.objects[hashlib.sha256(data).hexdigest()] = data


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub while the block runs."""
    with running(Hub()) as hub:
        yield hub


class _Handler(Handler):
    server: Hub

    def answer(self, value: Any = None, status: int = 200, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value or {}).encode()
        self.send(status, data, **headers)

    def handle_any(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length") or 0)
        path = unquote(urlsplit(self.path).path)
        if self.command == "PUT":
            self.receive(path.removeprefix("/lfs/"), length)
            return
        body = self.rfile.read(length)
        if self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
            self.answer({}, 401, X_Error_Message="Invalid credentials in Authorization header")
            return
        if self.server.read_only and self.command == "POST":
            self.answer({}, 403, X_Error_Message=f"no right to write: {self.headers['Authorization']}")
            return
        for method, pattern, respond in _ROUTES:
            result = re.fullmatch(pattern, path)
            if result and self.command in method:
                respond(self, body, *result.groups())
                return
        self.answer({}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def receive(self, sha256: str, length: int) -> None:
        if self.server.cuts.get(sha256, 0):
            self.server.cuts[sha256] -= 1
            self.rfile.read(length // 2)
            self.server.on_cut()
            self.cut()
            return
        data = self.rfile.read(length)
        self.server.objects[sha256] = data
        self.server.sent.append(sha256)
        self.answer({})

    def cut(self) -> None:
        """End the connection as a broken line does."""
        self.close_connection = True
        self.connection.shutdown(SHUT_RDWR)

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        known = repo in self.server.repositories
        self.server.repositories.setdefault(repo, {})
        self.answer({"url": f"{self.server.address}/{repo}"}, 409 if known else 200)

    def info(self, _: bytes, repo: str, revision: str) -> None:
        if repo not in self.server.repositories:
            self.answer({}, 404, X_Error_Code="RepoNotFound")
            return
        self.answer({"id": repo, "sha": self.server.head(repo), "siblings": [], "tags": []})

    def tree(self, _: bytes, repo: str, revision: str) -> None:
        self.answer_list([_described(path, data) for path, data in self.server.repositories[repo].items()])

    def answer_list(self, values: list[Any]) -> None:
        self.answer(json.dumps(values).encode())

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer({"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            upload = {"href": f"{self.server.address}/lfs/{wanted['oid']}"}
            actions = {} if wanted["oid"] in self.server.objects else {"actions": {"upload": upload}}
            objects.append(wanted | actions)
        self.answer({"transfer": "basic", "objects": objects})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        self.server.on_commit()
        header, *operations = (json.loads(line) for line in body.splitlines())
        parent = header["value"].get("parentCommit")
        if parent not in (None, self.server.head(repo)):
            self.answer({"error": "the branch has moved"}, 412)
            return
        for operation in operations:
            value = operation["value"]
            large = operation["key"] == "lfsFile"
            data = self.server.objects[value["oid"]] if large else base64.b64decode(value["content"])
            self.server.put(repo, value["path"], data)
        address = f"{self.server.address}/{repo}/commit/{self.server.head(repo)}"
        self.answer({"commitUrl": address, "commitOid": self.server.head(repo)})

    def resolve(self, _: bytes, repo: str, revision: str, path: str) -> None:
        files = self.server.repositories.get(repo)
        if files is None or path not in files:
            self.answer({}, 404, X_Error_Code="EntryNotFound" if files else "RepoNotFound")
            return
        data, start = files[path], 0
        messages = {"ETag": f'"{_git(data)}"', "X_Repo_Commit": revision, "Accept_Ranges": "bytes"}
        if self.command == "HEAD":
            messages["Content_Length"] = messages["X_Linked_Size"] = str(len(data))
            self.send_response(200)
            for name, text in messages.items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            return
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted:
            start = int(wanted[1])
            messages["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.server.cuts.get(path, 0):
            self.server.cuts[path] -= 1
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start : len(data) // 2])
            self.server.on_cut()
            self.cut()
            return
        self.answer(data[start:], 206 if wanted else 200, **messages)

    def valid(self, _: bytes) -> None:
        self.answer({"errors": [], "warnings": []})

    def branch(self, _: bytes, repo: str, branch: str) -> None:
        self.answer({})


_REPO = r"([^/]+/[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.valid),
    ("GET", f"/api/models/{_REPO}/revision/(.+)", _Handler.info),
    ("GET", f"/api/models/{_REPO}/tree/(.+)", _Handler.tree),
    ("POST", f"/api/models/{_REPO}/preupload/(.+)", _Handler.preupload),
    ("POST", f"/api/models/{_REPO}/commit/(.+)", _Handler.commit),
    ("POST", f"/api/models/{_REPO}/branch/(.+)", _Handler.branch),
    ("POST", f"/{_REPO}.git/info/lfs/objects/batch", _Handler.batch),
    ("GET HEAD", f"/{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
]


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _described(path: str, data: bytes) -> dict[str, Any]:
    large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    more = {"lfs": large} if path.endswith(LARGE) else {}
    return {"type": "file", "path": path, "size": len(data), "oid": _git(data)} | more
