"""The picture of a card in the README: the beginning of a card's page, as a browser shows it.

    pip install markdown    # in an environment of its own; and Debian's chromium
    python docs/card_picture.py results/tiny-moe/card docs/pictures/card.png

The page is laid out about as the Hugging Face hub and GitHub show it. As there, a wide
table goes beyond the right edge.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

WIDTH, HEIGHT = 1180, 1112

STYLE = """
body{margin:18px 26px;font:15px/1.5 'Liberation Sans',sans-serif;color:#1f2328;background:#fff}
h1{font-size:27px;margin:4px 0 8px;border-bottom:1px solid #d1d9e0;padding-bottom:6px}
h2{font-size:21px;margin:14px 0 8px;border-bottom:1px solid #d1d9e0;padding-bottom:4px}
p{margin:0 0 10px}sub{font-size:12px;line-height:1.3;vertical-align:baseline}
table{border-collapse:collapse;margin:0 0 10px;font-size:12.5px}
td,th{border:1px solid #d1d9e0;padding:3px 9px;white-space:nowrap}img{width:600px}body{overflow:hidden}
tr:nth-child(2n){background:#f6f8fa}
code{font:85% 'Liberation Mono',monospace;background:#eff1f3;padding:1px 4px;border-radius:4px}
a{color:#0969da;text-decoration:none}
"""


def page(card: Path) -> str:
    """The card's README.md as HTML: its front matter left out, up to the details of the files."""
    import markdown

    text = (card / "README.md").read_text("utf-8").split("---\n", 2)[2].split("<details>", 1)[0]
    body = markdown.markdown(text, extensions=["tables", "md_in_html"])
    head = f'<meta charset="utf-8"><base href="{card.resolve().as_uri()}/"><style>{STYLE}</style>'
    return f"<!doctype html>{head}{body}"


def main() -> None:
    """Write the picture."""
    card, out = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        html = Path(folder) / "card.html"
        html.write_text(page(card), "utf-8")
        command = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            "--allow-file-access-from-files",
        ]
        command += [f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={out.resolve()}", html.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    main()
