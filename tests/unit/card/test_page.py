"""The interactive page: what it holds, and in a real browser that it draws, tells and filters."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quantmill.card import page
from quantmill.card.charts import files
from quantmill.files import read_json, write_json, write_table
from quantmill.formats.allocation import ImportedSensitivity
from quantmill.formats.sensitivity import COLUMNS
from quantmill.judge import frontier
from quantmill.judge.results import Results, read
from reports import complete

Tree = tuple[Path, dict[str, Any]]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


@pytest.fixture
def full(kld_tree: Tree) -> Results:
    """Results with everything that the page draws."""
    folder, config = kld_tree
    path = folder / "imatrix.json"
    report = read_json(path)
    write_json(path, report | {"entries": [entry | {"mean": 0.5} for entry in report["entries"]]})
    rows = [
        [
            f"blk.{layer}.attn_q.weight",
            "attn_q",
            layer,
            "512x512",
            type_,
            9,
            0.1,
            0,
            0.01 * (layer + 1),
            0,
            "measured",
            "",
        ]
        for layer in range(4)
        for type_ in ("q4_K", "q3_K")
    ]
    write_table(folder / "sensitivity.tsv", COLUMNS, rows)
    write_json(folder / "sensitivity.json", complete(ImportedSensitivity, {"how": "imported"}))
    return read(folder, config | {"sensitivity": True})


def rendered(results: Results) -> str:
    return page.render(results, frontier.withheld(results, "dominated"), "Tiny & <b>GGUF</b>")


def test_the_page_stands_alone_and_escapes_what_it_is_given(full: Results) -> None:
    html = rendered(full)
    assert "<title>Tiny &amp; &lt;b&gt;GGUF&lt;/b&gt;</title>" in html
    body, script = html.split('<script type="module">')
    assert re.findall(r"(?:src|href)=\"(?!data:)", body) == []
    assert "import(" not in script
    assert html.count("</script>") == 1
    assert [
        name for name in ("files", "bits", "sensitivity", "importance", "texts") if f'id="{name}"' not in html
    ] == []


def test_what_was_not_measured_is_no_part_of_the_page(make_tree: Callable[..., Tree]) -> None:
    folder, config = make_tree()
    html = rendered(read(folder, config | {"perplexity": False, "imatrix": False}))
    assert 'id="files"' in html and 'id="sensitivity"' not in html and 'id="importance"' not in html


def test_a_loss_below_zero_takes_no_logarithm(tree: Tree) -> None:
    chart = files.build(read(*tree), [])
    assert min(row["low"] for row in chart.rows) < 0
    assert "log" not in str(chart.drawn.to_dict())


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium, its console recorded; CONTRIBUTING.md says how to have one."""
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium and chromedriver here")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1000,1400"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def test_in_a_browser_it_draws_tells_and_filters(full: Results, browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    wait = WebDriverWait(browser, 30)
    (tmp_path / "index.html").write_text(rendered(full), encoding="utf-8")
    browser.get(f"file://{tmp_path}/index.html")
    wait.until(lambda b: len(b.find_elements(By.CSS_SELECTOR, "[data-drawn=yes]")) == 5)
    assert browser.get_log("browser") == []

    def points() -> list[Any]:
        return browser.find_elements(By.CSS_SELECTOR, "#files .mark-symbol.role-mark path")

    def cells(name: str) -> list[Any]:
        return browser.find_elements(By.CSS_SELECTOR, f"#{name} .mark-rect.role-mark path")

    assert len(points()) == 6
    assert len(cells("bits")) == 4 * 7 + 1
    assert len(cells("importance")) == 4
    assert len(browser.find_elements(By.CSS_SELECTOR, "#texts .mark-rect.role-mark path")) == 2 * 2

    ActionChains(browser).move_to_element(points()[0]).perform()
    tooltip = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "#vg-tooltip-element.visible")).text
    assert "Q8_0" in tooltip and "KL divergence, nats" in tooltip

    Select(browser.find_element(By.CSS_SELECTOR, "#files select")).select_by_visible_text("q4_K")
    wait.until(lambda _: len(points()) == 2)
    Select(browser.find_element(By.CSS_SELECTOR, "#files select")).select_by_visible_text("all")
    wait.until(lambda _: len(points()) == 6)
    before = [cell.get_attribute("fill") for cell in cells("bits")]
    Select(browser.find_element(By.CSS_SELECTOR, "#bits select")).select_by_visible_text("IQ2_XXS")
    wait.until(lambda _: [cell.get_attribute("fill") for cell in cells("bits")] != before)
    assert browser.get_log("browser") == []
