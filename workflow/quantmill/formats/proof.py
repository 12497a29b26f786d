"""The lock of a model's files, and what came of rebuilding them from it."""

from typing import Annotated, Any, Final, Literal, TypedDict

from quantmill.formats.publication import Part
from quantmill.formats.report import Report
from quantmill.formats.settings import ImatrixFile, LockedCorpus, Quantize
from quantmill.formats.source import HubFile, LockedCheckpoint

LOCK_FORMAT: Final = 1


class LockedSource(TypedDict):
    """The source."""

    sha256: Annotated[str, "as in model.json"]
    bytes: int
    manifest: Annotated[str, "sha256 of manifest.tsv, which has that of every tensor"]
    files: list[Part]
    hub: Annotated[HubFile | None, "where it was downloaded from"]
    checkpoint: Annotated[LockedCheckpoint | None, "what it was converted from"]


class CorpusOfLock(LockedCorpus):
    """A corpus that files are made with; those of measurements alone are left out."""

    sha256: Annotated[str, "of corpus/<corpus>.parquet"]


class LockedImatrix(TypedDict):
    """The importance matrix."""

    sha256: Annotated[str, "of imatrix.gguf"]
    bytes: int
    named: Annotated[ImatrixFile, "as in the files' metadata"]
    imported: Annotated[str | None, "sha256 of the file that was given; null: measured here"]


class MomentsOfRecipe(TypedDict, total=False):
    """What a recipe's weights are rounded with."""

    moments: Annotated[str, "digest of the second moments' keys in the store"]
    cross: Annotated[str, "digest of the cross moments' keys"]


class LockedRecipe(MomentsOfRecipe):
    """A recipe and its file."""

    recipe: Annotated[str, "sha256 of recipes/<recipe>.yaml"]
    plan: Annotated[str, "sha256 of plans/<recipe>.tsv"]
    report: Annotated[str, "sha256 of plans/<recipe>.json"]
    settings: Quantize
    imatrix: Annotated[bool, "whether it is used"]
    preset: Annotated[str | None, "what llama-quantize calls it; null: it has rules or rounding of its own"]
    sha256: Annotated[str, "as in the file's report"]
    files: Annotated[list[Part], "as they were made"]
    published: Annotated[list[Part], "as they are in a repository: parts of those over `publish: {split}`"]


class LockedEngine(TypedDict):
    """An engine's build."""

    package: str
    version: str
    sha256: Annotated[str, "digest of the libraries together, as in specs"]
    libraries: Annotated[dict[str, str], "sha256 of each"]
    compiler: Annotated[str, "empty: came ready-made"]
    cmake: str
    flags: str
    instructions: Annotated[list[str], "sets that it was compiled for"]


class LockedKernel(TypedDict):
    """quantmill's own native code."""

    sources: Annotated[str, "sha256 of its sources together"]
    sha256: Annotated[str, "of the library"]
    flags: list[str]


class Versions(TypedDict):
    """Versions of what decides the files."""

    quantmill: str
    stages: dict[str, int]


class Lock(TypedDict):
    """Everything that a model's files are made from, and the files, by content."""

    format: Annotated[int, "1"]
    model: str
    source: LockedSource
    corpora: dict[str, CorpusOfLock]
    imatrix: LockedImatrix | None
    recipes: dict[str, LockedRecipe]
    engines: dict[str, LockedEngine]
    kernel: LockedKernel
    versions: Versions


class Difference(TypedDict):
    """What is not as it was made again."""

    tensor: Annotated[str, "`header`: the metadata; `file`: the whole; or what it is made from"]
    type: Annotated[str, "empty where it is no tensor"]
    cause: str


class VerifiedFile(TypedDict):
    """A recipe's file, made again and compared."""

    recipe: str
    file: str
    tensors: int
    compared: Annotated[int, "tensors"]
    engine: Annotated[str, "digest of the engine that made it again"]
    differences: list[Difference]
    refused: Annotated[str | None, "why it could not be made again"]


class Verified(TypedDict):
    """What came of making a model's files again."""

    lock: Annotated[str, "sha256 of lock.json"]
    mode: Literal["all", "sample"]
    files: list[VerifiedFile]


def is_identical(file: VerifiedFile) -> bool:
    """Whether nothing that was compared of the file differs."""
    return not file["differences"] and file["refused"] is None


LOCK: Final = Report[Lock](
    "lock.json",
    "proof.lock",
    (Lock,),
    "No times, hosts or paths: the same inputs give the same bytes. See [verify.md](verify.md).",
)
VERIFIED: Final = Report[Verified](
    "verify.json",
    "proof.verify",
    (Verified,),
    "Of `snakemake verify`, or of `publish: {verify}`. It is about the lock that it names, and no other.",
)

Statement = dict[str, Any]
"""An in-toto Statement v1."""
