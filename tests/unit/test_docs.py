"""The pages for people: links lead somewhere, configs in them are right, the README stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from quantmill.config import file as config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text("utf-8")), re.MULTILINE)
    texts = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w -]", "", text).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", _FENCED.sub("", page.read_text("utf-8")))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert not broken


def test_the_readmes_config_is_right() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert config.parse(yaml.safe_load(block)).recipes_of("my-model").keys() >= {"Q8_0", "IQ4_XS"}
    assert len(block.splitlines()) <= 10


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) < 700


def test_the_places_of_changes_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    table = text.partition("## Where does a change go?")[2].partition("Made, not written by hand")[0]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE)[1:]
    assert len(rows) == 13  # a version of llama.cpp and another engine are two
    places = {
        place
        for _, cell in rows
        for place in re.findall(r"`([\w./-]+/|[\w./-]+\.(?:py|smk|in|json|md))`", cell)
    }
    roots = (
        ROOT,
        ROOT / "workflow" / "quantmill",
        ROOT / "workflow" / "quantmill" / "engine",
        ROOT / "workflow" / "rules",
    )
    assert len(places) > 20
    assert not {place for place in places if not any((root / place).exists() for root in roots)}


def test_no_command_has_a_target_behind_its_config() -> None:
    """Snakemake would take it as a second config, and end with a traceback."""
    examples = sorted((ROOT / "examples").rglob("*.yaml"))
    commands = [
        (page.name, line)
        for page in [*PAGES, *examples, ROOT / "config.yaml", ROOT / "Makefile"]
        for line in page.read_text("utf-8").splitlines()
        if re.search(r"snakemake .*--configfiles? [^\s`]+ +[\w./]", line.partition("  #")[0])
    ]
    assert commands == []
