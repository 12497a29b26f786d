"""Put llama.cpp's converter beside the environment that runs it, from the source that the engine is built of.

    python envs/converter.py FOLDER

The engine's sdist (engine.lock, by its hashes) holds llama.cpp; of it
convert_hf_to_gguf.py, conversion/ and gguf-py/ go into FOLDER.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

_LOCK = Path(__file__).with_name("engine.lock")
_WANTED = ("convert_hf_to_gguf.py", "conversion", "gguf-py")


def main() -> None:
    """Fetch the sdist, unpack what is wanted."""
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--quiet"]
        command += [
            "--no-deps",
            "--no-build-isolation",
            "--no-binary",
            "llama-cpp-python",
            "--require-hashes",
        ]
        subprocess.run([sys.executable, *command, "--dest", folder, "-r", str(_LOCK)], check=True)
        (sdist,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            for member in archive:
                # <sdist>/vendor/llama.cpp/...
                parts = PurePosixPath(member.name).parts
                if parts[1:3] == ("vendor", "llama.cpp") and len(parts) > 3 and parts[3] in _WANTED:
                    member.name = str(PurePosixPath(*parts[3:]))
                    archive.extract(member, target, filter="data")
    if not (target / _WANTED[0]).is_file():
        sys.exit(f"error: {sdist.name}: no {_WANTED[0]} in it; it moved, and envs/converter.py must follow")


if __name__ == "__main__":
    main()
