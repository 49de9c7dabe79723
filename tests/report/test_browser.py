"""The page of a run in a real browser: it draws, it is quiet, it opens, and it runs nothing of a log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fxgraft.report.page import page, write
from tests.browser import chromium
from tests.report.test_page import EVIL, evil_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


def opened(browser: Any, path: Path) -> list[str]:
    """Open a page; return what its console says."""
    browser.get(path.as_uri())
    return [entry["message"] for entry in browser.get_log("browser")]


def test_the_page_draws_the_run(browser: Any, run_folder: Path, tmp_path: Path) -> None:
    assert opened(browser, write(run_folder, tmp_path / "run.html")) == []
    titles = browser.execute_script(
        "return [...document.querySelectorAll('#chart .annotation-text')].map(e => e.textContent)"
    )
    assert [title.split()[0] for title in titles] == ["kept", "culled", "growing"]
    strips = browser.find_elements("css selector", "#chart .shapelayer path")
    assert len(strips) == 6, "one for each stage of each seed"
    assert all(strip.rect["width"] > 0 for strip in strips)
    assert len(browser.find_elements("css selector", "#chart .scatterlayer .js-line")) >= 5
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith(("data:", "blob:"))] == []


def test_the_structure_and_the_log_open(browser: Any, run_folder: Path, tmp_path: Path) -> None:
    opened(browser, write(run_folder, tmp_path / "run.html"))
    log = browser.find_element("id", "log")
    assert not log.is_displayed()
    browser.find_elements("css selector", "summary")[-1].click()
    assert log.is_displayed()
    seeds = [element.text for element in browser.find_elements("css selector", ".seed")]
    assert [text.split(":")[0].split()[-1] for text in seeds] == ["kept", "growing"]


def test_a_narrow_window_scrolls_nothing_sideways(browser: Any, run_folder: Path, tmp_path: Path) -> None:
    """A telephone of 400 pixels: a wide table scrolls by itself, and breaks no line after a few letters."""
    size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened(browser, write(run_folder, tmp_path / "run.html"))
    wide = browser.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    shown = browser.execute_script("return innerWidth")
    cells = browser.execute_script(
        "return [...document.querySelectorAll('#seeds td:not(.n)')].map(cell => cell.offsetWidth)"
    )
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert shown == 400
    assert wide <= 0
    assert min(cells) >= 100


def test_nothing_of_a_log_runs(browser: Any, tmp_path: Path) -> None:
    planted = EVIL.replace("alert(1)", "window.planted=1").replace("alert(2)", "window.planted=2")
    planted += "<a href='javascript:window.planted=3'>x</a><svg onload=window.planted=4>"
    (tmp_path / "x.html").write_text(page(evil_run(planted), planted))
    assert opened(browser, tmp_path / "x.html") == []
    assert browser.execute_script("return window.planted === undefined")
    assert browser.execute_script("return document.querySelectorAll('img, a[href*=script]').length") == 0
    assert planted in browser.find_element("tag name", "h1").text


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_legible_in_light_and_in_dark(dark: bool, run_folder: Path, tmp_path: Path) -> None:
    from tests.seeds.test_colours import contrast

    target = write(run_folder, tmp_path / "run.html")
    with chromium(dark) as driver:
        opened(driver, target)
        style = "return getComputedStyle(document.documentElement).getPropertyValue('--%s')"
        ink, soft, paper = (driver.execute_script(style % name) for name in ("ink", "soft", "paper"))
        drawn = driver.execute_script("return document.getElementById('chart').layout.font.color")
        shown = driver.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches")
    assert shown is dark
    assert drawn.strip() == ink.strip(), "the chart has the text colour of the page"
    assert contrast(ink.strip(), paper.strip()) >= 7
    assert contrast(soft.strip(), paper.strip()) >= 4.5
