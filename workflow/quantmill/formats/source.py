"""What is known of the source: where it is from, what it is, and the memory that its files take."""

from typing import Annotated, Any, Final, NotRequired, TypedDict

from quantmill.formats.report import Report


class Fetched(TypedDict):
    """A file of a Hugging Face repository."""

    repo: str
    file: str
    revision: Annotated[str, "the commit"]
    bytes: int


class Converted(TypedDict):
    """A checkpoint, converted to GGUF."""

    checkpoint: Annotated[str, "the folder's name"]
    architectures: Annotated[list[str] | None, "of config.json"]
    dtypes: Annotated[dict[str, int], "tensors of each dtype of the checkpoint"]
    drafts: Annotated[bool, "whether it has layers for multi-token prediction"]
    to: Annotated[str, "the type in the config: auto, f16 or bf16"]
    file: str
    bytes: int
    tensors: int
    types: Annotated[dict[str, int], "tensors of each type of the GGUF"]


class HubFile(TypedDict):
    """A file of a Hugging Face repository."""

    repo: str
    revision: Annotated[str, "the commit"]
    file: str


class LockedCheckpoint(TypedDict):
    """A checkpoint that was converted."""

    name: Annotated[str, "of its folder"]
    files: Annotated[dict[str, str], "sha256 of each"]
    to: Annotated[str, "the type in the config: auto, f16 or bf16"]
    pre_tokenizer: str | None
    projector: NotRequired[Annotated[bool, "its projector in place of the language model"]]
    converter: Annotated[str, "digest of the converter's pins"]


class Check(TypedDict):
    """What kind of model the source is."""

    kind: Annotated[
        str,
        "decoder, encoder, reranker, diffusion, encoder-decoder, text-encoder, speech, draft or projector",
    ]
    words: Annotated[str, "the kind in words"]
    warnings: Annotated[list[str], "of llama.cpp when it loaded the header"]


class Model(TypedDict):
    """The source's header."""

    name: Annotated[str | None, "`general.name`"]
    architecture: str
    layers: int
    context_length: int | None
    embedding_length: int | None
    experts: int
    experts_used: int
    parameters: int
    tensors: int
    bytes: int
    sha256: Annotated[str, "of the file; of a split source, of its files' sha256s joined by newlines"]
    types: Annotated[dict[str, int], "tensors of each type"]
    quantized: Annotated[bool, "whether any 2-D weight is of a quantized type"]
    quantized_types: list[str]
    grids: NotRequired[Annotated[dict[str, int], "matrices of floats that lie on the grid of a type"]]
    tokenizer: Annotated[str | None, "such as gpt2"]
    chat_template: str | None
    licence: str | None
    metadata_bytes: Annotated[int, "where the tensors' data begin"]
    hyperparameters: Annotated[dict[str, Any], "the values below `{architecture}.`"]


class MemoryRow(TypedDict):
    """What a file and a context take together."""

    context: Annotated[int, "tokens"]
    cache: Annotated[str, "f16, q8_0 or q4_0"]
    file_bytes: int
    cache_bytes: Annotated[int, "with recurrent states"]
    compute_bytes: Annotated[int, "an estimate"]
    total_bytes: int


class MemoryFit(TypedDict):
    """The longest context that fits a device."""

    total_bytes: Annotated[int, "of the device: 8, 12, 16, 24, 32 or 48 GiB"]
    cache: str
    context: Annotated[int, "tokens, a multiple of 256; 0 where none fits beside the file and the reserve"]


class ProjectorMemory(TypedDict):
    """A projector beside a file; its compute buffers are not counted."""

    file: str
    bytes: int
    fits: list[MemoryFit]


class RecipeMemory(TypedDict):
    """The tables of one recipe."""

    rows: list[MemoryRow]
    fits: list[MemoryFit]
    projectors: NotRequired[Annotated[list[ProjectorMemory], "the one of the card's commands first"]]


class Memory(TypedDict):
    """What files and contexts take together, for every recipe of the model."""

    contexts: Annotated[list[int], "the card's; default: powers of two, as far as the model was trained"]
    context_length: Annotated[int | None, "that the model was trained for"]
    reserve_bytes: int
    recipes: dict[str, RecipeMemory]


FETCHED: Final = Report[Fetched](
    "source/<file>.json", "model.fetch", (Fetched,), "Of a file that was fetched."
)
CONVERTED: Final = Report[Converted](
    "source/<model>.gguf.json",
    "checkpoint.convert",
    (Converted,),
    "Of a checkpoint that was converted. The GGUF beside it is the converter's own, byte for byte.",
)
CHECK: Final = Report[Check](
    "check.json",
    "check.source",
    (Check,),
    "What the config asks of the model is given in `--evaluations`. It is no part of the spec: it decides "
    "what is refused, and changes no result.",
)
MODEL: Final = Report[Model]("model.json", "model.manifest", (Model,), "The source in short.")
MEMORY: Final = Report[Memory](
    "memory.json",
    "model.memory",
    (Memory,),
    "Apart from the plans, so that other contexts make no file stale.",
)
