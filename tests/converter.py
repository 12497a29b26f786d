"""A stand-in for the converter's environment: a python, and a script that does what it is told."""

from __future__ import annotations

import sys
from pathlib import Path

# Like llama.cpp's own: the script imports a package beside it, which the runner may have changed.
CONVERSION = """
class ModelType:
    TEXT = 1

class ModelBase:
    @staticmethod
    def load_hparams(folder, is_mistral_format):
        import json
        return json.loads((folder / "config.json").read_text())

class Drafting:
    supports_mtp_export = True

class Plain:
    supports_mtp_export = False

def get_model_architecture(hparams, model_type):
    return hparams["architectures"][0]

def get_model_class(architecture):
    if architecture.startswith("NoSuch"):
        raise NotImplementedError(architecture)
    return Drafting if architecture.startswith("Qwen") else Plain
"""
BASE = """
class TextModel:
    def get_vocab_base_pre(self, tokenizer):
        return "default"
"""
SCRIPT = """
import json, os, pathlib, shutil, signal, sys
import conversion.base
from conversion import get_model_class
arguments = sys.argv[1:]
source, out = pathlib.Path(arguments[0]), pathlib.Path(arguments[arguments.index("--outfile") + 1])
architecture = json.loads((source / "config.json").read_text())["architectures"][0]
try:
    get_model_class(architecture)
except NotImplementedError:
    print(f"ERROR:hf-to-gguf:Model {architecture} is not supported", file=sys.stderr)
    sys.exit(1)
{do}
"""
COPY = "shutil.copyfile({gguf!r}, out)"


def build(folder: Path, do: str) -> Path:
    """The stand-in in `folder`; `do` is what it does once it knows `source`, `out` and `arguments`."""
    script = folder / "llama.cpp" / "convert_hf_to_gguf.py"
    (script.parent / "conversion").mkdir(parents=True)
    (script.parent / "conversion" / "__init__.py").write_text(CONVERSION, encoding="utf-8")
    (script.parent / "conversion" / "base.py").write_text(BASE, encoding="utf-8")
    script.write_text(SCRIPT.replace("{do}", do), encoding="utf-8")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    return folder
