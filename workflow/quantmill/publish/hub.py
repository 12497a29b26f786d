"""A repository on the Hugging Face hub: what it holds, and uploading to it; errors in one line.

The token is the one that huggingface_hub keeps (`hf auth login`, or HF_TOKEN).
It is neither an argument nor part of any message.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from quantmill.errors import QuantmillError
from quantmill.files import writing
from quantmill.progress import Progress
from quantmill.publish.files import Item

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd


class UnreachableError(QuantmillError):
    """No answer at all: no network, or the hub is down."""


class Stored(NamedTuple):
    """A file in a repository: large ones are known by their sha256, small ones by git's own digest."""

    bytes: int
    sha256: str | None
    git: str


class Holdings(NamedTuple):
    """What a repository holds at a commit."""

    commit: str
    files: dict[str, Stored]


class Repository:
    """One repository of models at one branch."""

    login: Final = "run `hf auth login`"
    missing: Final = ""  # it is made

    def __init__(self, name: str, revision: str) -> None:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if not sys.stderr.isatty():
            disable_progress_bars()

        self.name, self.revision = name, revision
        self._token: str | None = None
        self._api = HfApi()  # finds the token itself, and has it renewed where it can be
        with self._errors("the token cannot be had"):
            self._token = get_token()

    @property
    def has_token(self) -> bool:
        """Whether there is a token to upload with."""
        return self._token is not None

    def holdings(self) -> Holdings | None:
        """What it holds; None where there is no such repository, or none that this token sees."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
        from huggingface_hub.hf_api import RepoFile

        with self._errors("cannot be read"):
            try:
                commit = self._api.model_info(self.name, revision=self.revision).sha or ""
                tree = self._api.list_repo_tree(self.name, recursive=True, revision=commit)
                files = {
                    file.path: Stored(file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
                    for file in tree
                    if isinstance(file, RepoFile)
                }
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None
        return Holdings(commit, files)

    def read(self, path: str, commit: str) -> bytes:
        """A small file of it."""
        with self._errors(f"{path} cannot be read"), tempfile.TemporaryDirectory() as folder:
            return Path(
                self._api.hf_hub_download(self.name, path, revision=commit, local_dir=folder)
            ).read_bytes()

    def make(self, private: bool) -> None:
        """Make the repository and the branch, where they are not there."""
        with self._errors("cannot be made"):
            self._api.create_repo(self.name, private=private, exist_ok=True)
            if self.revision != "main":
                self._api.create_branch(self.name, branch=self.revision, exist_ok=True)

    def upload(
        self, items: Iterable[Item], parent: str | None, message: str, progress: Progress, room: Path
    ) -> str:
        """Upload the items and commit them together, onto the commit `parent` alone; the commit's address.

        Large files go first, one by one. One that the hub has already is not
        sent again, though no commit names it yet: so an upload that was cut off
        goes on. Nothing is seen of any until the commit. A part of a file is
        written into the folder `room`, for as long as it takes to send it.
        """
        from huggingface_hub import CommitOperationAdd

        done: list[CommitOperationAdd] = []
        for item in items:
            with _written(item, room) as content:
                addition = CommitOperationAdd(item.path, content)
                with self._errors(f"{item.path} cannot be uploaded"):
                    self._api.preupload_lfs_files(
                        self.name, [addition], revision=self.revision, free_memory=False
                    )
                _check(addition, item)
            done.append(addition)
            progress.add(item.bytes)
        with self._errors("cannot be committed to"):
            commit = self._api.create_commit(
                self.name, done, commit_message=message, revision=self.revision, parent_commit=parent
            )
        return commit.commit_url

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Whatever the client raises, of several libraries, in one line and without the token."""
        from httpx2 import TransportError

        try:
            yield
        except QuantmillError:
            raise
        except Exception as error:
            # What fails in an upload's thread is wrapped, and says no more than that it failed.
            wrapped = type(error) is RuntimeError and isinstance(error.__cause__, Exception)
            cause = error.__cause__ if wrapped else error
            reason = " ".join(str(cause).split()) or type(cause).__name__
            reason = reason.replace(self._token, "(token)") if self._token else reason
            status = getattr(getattr(cause, "response", None), "status_code", None)
            cut_off = isinstance(cause, (TransportError, ConnectionError))
            kind = UnreachableError if cut_off else QuantmillError
            raise kind(f"{what} ({reason[:300]})", self.name, _CURES.get(status or 0, _CURE)) from None


_CURE = "check the network and the name, then run it again: what was uploaded is not sent twice"
_CURES = {
    401: "the token is not accepted: run `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there: make one that may, and run `hf auth login`",
    412: "somebody else changed the repository meanwhile: run it again, what was uploaded is not sent twice",
}


@contextmanager
def _written(item: Item, room: Path) -> Iterator[str | bytes]:
    """The item's bytes, or the path of a file that has them while the block runs."""
    if isinstance(item.content, bytes):
        yield item.content
    elif isinstance(item.content, Path):
        yield str(item.content)
    else:
        part = room / Path(item.path).name
        with writing(part, durable=False) as file:
            for block in item.content.blocks():
                file.write(block)
        try:
            yield str(part)
        finally:
            part.unlink()


def _check(addition: CommitOperationAdd, item: Item) -> None:
    """Refuse a file that changed since it was made: the digest was taken while it was sent."""
    sent = addition.upload_info.sha256
    if sent is not None and sent.hex() != item.sha256:
        what = "has other bytes than when it was made"
        raise QuantmillError(what, item.path, "delete it to have it made again")
