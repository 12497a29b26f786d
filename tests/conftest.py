"""What all tests share: a cache of their own, for tests and the commands that they run."""

import os
import tempfile
from pathlib import Path

os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / f"quantmill-tests-{os.getuid()}")
