"""What makes the speed behind a server due again."""

import os
import sys
from pathlib import Path

from checkout import ROOT, Checkout

SERVED = {"measure_served source", "measure_served Q8_0"}
CARD = {"write_card"}


def configure(checkout: Checkout, **more: object) -> None:
    """One recipe, of which only this is measured."""
    served = {"workloads": [{"name": "a", "prompt": 8, "generate": 4}], "repetitions": 1, **more}
    lean = {"imatrix": None, "sensitivity": None, "recipes": ["Q8_0"], "bench": {"served": served}}
    checkout.configure(lambda config: config.update(lean))


def test_what_makes_the_speed_behind_a_server_due(tmp_path: Path) -> None:
    checkout = Checkout.build(tmp_path / "checkout")
    binary = checkout.folder / "llama-server"
    binary.write_text(
        f"#!{sys.executable}\n" + (ROOT / "tests" / "fake_server.py").read_text("utf-8"), encoding="utf-8"
    )
    binary.chmod(0o755)
    (checkout.folder / "notes").mkdir()
    (checkout.folder / "notes" / "mode").touch()
    configure(checkout, server="llama-server")
    checkout.run()
    os.utime(binary)
    assert checkout.due() == set()
    build = binary.read_text("utf-8")
    binary.write_text(build + "# another one\n", encoding="utf-8")
    assert checkout.due() == SERVED | CARD
    binary.write_text(build, encoding="utf-8")
    configure(checkout, server="llama-server", repetitions=2)
    assert checkout.due() == SERVED | CARD
    # llama-cpp-python's own
    configure(checkout)
    assert checkout.due() == SERVED | CARD
