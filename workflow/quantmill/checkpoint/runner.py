"""Runs llama.cpp's converter, in the converter's own environment: nothing of quantmill is imported here.

    python -P runner.py FOLDER PRE_TOKENIZER DRAFTS CHECKPOINT ARGUMENT...

FOLDER holds convert_hf_to_gguf.py and what it needs of llama.cpp.
PRE_TOKENIZER, unless empty, is taken for the checkpoint's: the converter knows
pre-tokenizers by a hash of what they do, and refuses all others. Where DRAFTS
is `none` (the checkpoint has no draft layers) the converter gets an option for that, which
it demands of the models that may have some.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Prepare the converter, and run it as if by hand."""
    folder, pre_tokenizer, drafts, checkpoint, *arguments = sys.argv[1:]
    sys.path[:0] = [folder, str(Path(folder) / "gguf-py")]
    if pre_tokenizer:
        base = importlib.import_module("conversion.base")
        base.TextModel.get_vocab_base_pre = lambda _model, _tokenizer: pre_tokenizer
    if drafts == "none" and _may_draft(Path(checkpoint)):
        arguments.append("--no-mtp")
    script = Path(folder) / "convert_hf_to_gguf.py"
    sys.argv = [str(script), checkpoint, *arguments]
    runpy.run_path(str(script), run_name="__main__")


def _may_draft(checkpoint: Path) -> bool:
    """Whether models of the checkpoint's architecture may have draft layers; unknown ones are left to it."""
    conversion = importlib.import_module("conversion")
    hparams = conversion.ModelBase.load_hparams(checkpoint, False)
    architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    try:
        return bool(conversion.get_model_class(architecture).supports_mtp_export)
    except NotImplementedError:
        return False


if __name__ == "__main__":
    main()
