"""Install the engine (llama-cpp-python, an sdist) into the environment that runs this.

The wheel is built once for a machine and kept in the user's cache, under the
digest of all that decides it: pip's own cache knows a wheel by its source alone
and would hand a build for the CPU to whoever asks for CUDA next. What the user
puts into CMAKE_ARGS reaches the build as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

_HERE = Path(__file__).parent
_LOCKS = ("engine.lock", "build.lock")
_ENVIRONMENT = ("CMAKE_ARGS", "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS")


def main() -> None:
    """Find or build the wheel, then install it."""
    wheels = _cache() / "wheels" / _key()
    wheel = next(wheels.glob("*.whl"), None) or _build(wheels)
    _pip("install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "quantmill"


def _key() -> str:
    """The digest of the locks, the processor and the build's environment."""
    decides = [
        [(_HERE / lock).read_text("utf-8") for lock in _LOCKS],
        [sys.platform, platform.machine(), platform.libc_ver(), _processor()],
        {name: os.environ.get(name, "") for name in _ENVIRONMENT},
    ]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]


def _processor() -> str:
    """The instruction sets of this processor: llama.cpp is built for exactly these."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _build(wheels: Path) -> Path:
    log = Path(sys.prefix) / "engine.log"
    print(f"building llama.cpp for this machine, some minutes; log: {log}", flush=True)
    wheels.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheels.parent) as folder:
        command = ["wheel", "--verbose", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
        command += ["--no-binary", "llama-cpp-python", "--require-hashes", "--wheel-dir", folder]
        with log.open("w", encoding="utf-8") as output:
            built = _pip(*command, "--requirement", str(_HERE / "engine.lock"), output=output)
        if built != 0:
            tail = "".join(log.read_text(errors="replace", encoding="utf-8").splitlines(keepends=True)[-20:])
            sys.exit(f"{tail}error: the engine's build failed; see {log}")
        wheel = next(Path(folder).glob("*.whl"))
        wheels.mkdir(exist_ok=True)
        return wheel.replace(wheels / wheel.name)


def _pip(*arguments: str, output: IO[str] | None = None) -> int:
    """Run pip with the build tools of this environment first on the path; its exit code."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    if output is None:
        return subprocess.run([*command, "--quiet", "--quiet"], check=True).returncode
    environment = os.environ | {"PATH": path}
    return subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode


if __name__ == "__main__":
    main()
