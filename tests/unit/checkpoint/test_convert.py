"""Converting a checkpoint: the converter's command line, what its failures mean, nothing half written.

The converter is a stand-in (tests/converter.py), for the real one needs torch.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoints
import converter
from quantmill import spec
from quantmill.checkpoint.convert import failure, has_drafts
from quantmill.checkpoint.safetensors import Checkpoint

GGUF = str(Path(__file__).parents[2] / "data" / "tiny-llama.gguf")
COPY = converter.COPY.format(gguf=GGUF)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoints.write(tmp_path / "a checkpoint", shards=2)


def convert(source: Path, environment: Path, **settings: str | bool) -> subprocess.CompletedProcess[str]:
    """The stage, into a.gguf beside the checkpoint."""
    config = {"to": "auto", "pre_tokenizer": None} | settings
    words = ["--spec", spec.make("checkpoint.convert", config, {}), "--source", str(source)]
    words += ["--converter", str(environment), "--gguf", "out/a.gguf", "--facts", "out/a.json"]
    words += ["--log", "a.log"]
    command = [sys.executable, "-m", "quantmill.checkpoint.convert", *words]
    return subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=False)


def error(done: subprocess.CompletedProcess[str], folder: Path) -> str:
    """The one line of a stage that failed and left nothing behind."""
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert not list(folder.glob("out/*")) and not list(folder.glob("out/.*"))
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return line.removeprefix("error: ")


def test_it_is_the_converters_own_file(tmp_path: Path, source: Path) -> None:
    environment = converter.build(tmp_path / "an environment", f"print('said', arguments)\n{COPY}")
    done = convert(source, environment, to="bf16")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a.gguf").read_bytes() == Path(GGUF).read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.gguf", "a.json"}
    facts = json.loads((tmp_path / "out" / "a.json").read_text("utf-8"))
    assert facts == {
        "checkpoint": "a checkpoint",
        "architectures": ["LlamaForCausalLM"],
        "dtypes": {"BF16": 21},
        "drafts": False,
        "to": "bf16",
        "file": "a.gguf",
        "bytes": Path(GGUF).stat().st_size,
        "tensors": 21,
        "types": {"f16": 16, "f32": 5},
    }
    (said,) = (
        line for line in (tmp_path / "a.log").read_text("utf-8").splitlines() if line.startswith("said")
    )
    words = json.loads(said.removeprefix("said ").replace("'", '"'))
    assert words[:2] == [str(source), "--outfile"] and words[3:] == ["--outtype", "bf16"]


@pytest.mark.parametrize(
    ("architecture", "draft", "said"),
    [
        ("LlamaForCausalLM", None, False),
        ("Qwen3NextForCausalLM", None, True),
        ("Qwen3NextForCausalLM", "mtp.fc.weight", False),
        ("Qwen3NextForCausalLM", "model.layers.2.mlp.up_proj.weight", False),
    ],
)
def test_draft_layers_that_are_not_there_are_said(
    tmp_path: Path, architecture: str, draft: str | None, said: bool
) -> None:
    source = tmp_path / "model"
    source.mkdir()
    config = checkpoints.LLAMA | {"architectures": [architecture]}
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = checkpoints.tensors(checkpoints.LLAMA, "BF16")
    if draft:
        tensors[draft] = tensors["lm_head.weight"]
    checkpoints.save(source / "model.safetensors", tensors)
    assert has_drafts(Checkpoint(source), config) is (draft is not None)
    environment = converter.build(tmp_path / "e", f"assert ('--no-mtp' in arguments) is {said}\n{COPY}")
    done = convert(source, environment)
    assert done.returncode == 0, done.stderr


def test_a_pre_tokenizer_is_taken_for_the_checkpoints(tmp_path: Path, source: Path) -> None:
    do = "assert conversion.base.TextModel().get_vocab_base_pre(None) == 'qwen2'"
    environment = converter.build(tmp_path / "e", f"{do}\n{COPY}")
    assert convert(source, environment, pre_tokenizer="qwen2").returncode == 0
    shutil.rmtree(tmp_path / "out")
    assert "the converter failed (AssertionError)" in error(convert(source, environment), tmp_path)


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (
            "print('tokenizing'); raise ValueError('Can not map tensor x')",
            "a checkpoint: the converter failed (ValueError: Can not map tensor x);"
            " the log has its whole output",
        ),
        (
            "out.write_bytes(b'GGUF'); os.kill(os.getpid(), signal.SIGKILL)",
            "a checkpoint: the converter was ended by SIGKILL; give it more memory",
        ),
        (
            "import nothing_such",
            "a checkpoint: the converter's environment lacks nothing_such; build it anew: make converter",
        ),
        ("out.write_bytes(b'GGUF')", ".gguf: truncated"),
        ("sys.exit(3)", "a checkpoint: the converter failed (nothing); the log has its whole output"),
    ],
)
def test_a_failure_is_one_line_and_leaves_nothing(
    tmp_path: Path, source: Path, do: str, message: str
) -> None:
    assert message in error(convert(source, converter.build(tmp_path / "e", do)), tmp_path)


def test_an_architecture_that_the_converter_lacks(tmp_path: Path, source: Path) -> None:
    config = source / "config.json"
    config.write_text(config.read_text("utf-8").replace("Llama", "NoSuch"), encoding="utf-8")
    said = error(convert(source, converter.build(tmp_path / "e", COPY)), tmp_path)
    assert said == (
        f"{config}: the converter knows no architecture NoSuchForCausalLM; take a GGUF of the model"
    )


def test_what_is_missing_is_told_before_the_converter_starts(tmp_path: Path, source: Path) -> None:
    assert error(convert(source, tmp_path / "nothing"), tmp_path) == (
        f"{tmp_path}/nothing: no bin/python, and a checkpoint is to be converted;"
        " build the converter's environment: make converter (torch for the CPU, about 1.2 GB)"
    )
    environment = converter.build(tmp_path / "e", COPY)
    (source / "model-00002-of-00002.safetensors").unlink()
    said = error(convert(source, environment), tmp_path)
    assert said == (
        f"{source}: no model-00002-of-00002.safetensors, named by model.safetensors.index.json;"
        " fetch the missing file"
    )
    shutil.rmtree(environment / "llama.cpp")
    (source / "model.safetensors.index.json").unlink()
    (source / "model-00001-of-00002.safetensors").rename(source / "model.safetensors")
    assert "no llama.cpp/convert_hf_to_gguf.py" in error(convert(source, environment), tmp_path)


# What the converter of llama-cpp-python 0.3.36 said of real checkpoints, the middle left out.
UNKNOWN_TOKENIZER = """\
WARNING:hf-to-gguf:** WARNING: The BPE pre-tokenizer was not recognized!
WARNING:hf-to-gguf:** chkhsh:  0e48529720854904fcb14a92fc0edc7f2d2d31de9b2dd2d8a62ffb07a944fe6e
FileNotFoundError: Cannot find Llama BPE tokenizer

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
    raise NotImplementedError("BPE pre-tokenizer was not recognized - update get_vocab_base_pre()")
NotImplementedError: BPE pre-tokenizer was not recognized - update get_vocab_base_pre()
"""
NO_TOKENIZER = """\
Traceback (most recent call last):
ValueError: Couldn't instantiate the backend tokenizer from one of: 
(1) a `tokenizers` library serialization file, 
You need to have sentencepiece or tiktoken installed to convert a slow tokenizer to a fast one.
"""  # noqa: W291


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            UNKNOWN_TOKENIZER,
            "m: the converter does not know its tokenizer"
            " (hash 0e48529720854904fcb14a92fc0edc7f2d2d31de9b2dd2d8a62ffb07a944fe6e); name the pre-tokenizer"
            " that it is like: source: {checkpoint: ..., pre_tokenizer: qwen2}",
        ),
        (
            NO_TOKENIZER,
            "m: the converter failed (ValueError: Couldn't instantiate the backend tokenizer from one of:);"
            " the log has its whole output",
        ),
        (
            "INFO:hf-to-gguf:Model architecture: X\nERROR:hf-to-gguf:Model X is not supported\n",
            "m/config.json: the converter knows no architecture X; take a GGUF of the model",
        ),
    ],
)
def test_what_the_converter_says_is_condensed(said: str, message: str) -> None:
    assert str(failure(1, said, Path("m"))) == message
    assert len(str(failure(1, "ValueError: " + "x" * 5000, Path("m")))) < 400


def test_the_projector_is_asked_for_in_place_of_the_language_model(tmp_path: Path, source: Path) -> None:
    """A projector has no draft layers, whatever the architecture may have."""
    config = source / "config.json"
    config.write_text(config.read_text("utf-8").replace("LlamaFor", "Qwen3NextFor"), encoding="utf-8")
    do = "assert '--mmproj' in arguments and '--no-mtp' not in arguments"
    environment = converter.build(tmp_path / "e", f"{do}\n{COPY}")
    done = convert(source, environment, projector=True)
    assert done.returncode == 0, done.stderr


def test_a_model_without_a_projector_is_refused(tmp_path: Path, source: Path) -> None:
    config = source / "config.json"
    config.write_text(config.read_text("utf-8").replace("Llama", "NoSuch"), encoding="utf-8")
    said = error(convert(source, converter.build(tmp_path / "e", COPY), projector=True), tmp_path)
    assert said == (
        f"{config}: the converter knows no projector of NoSuchForCausalLM; "
        "leave `projector` out, or take a GGUF of it"
    )
