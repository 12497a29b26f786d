"""docs/files.md: `python -m quantmill.formats > docs/files.md`."""

from __future__ import annotations

import sys

from quantmill.formats.docs import page

if __name__ == "__main__":
    sys.stdout.write(page())
