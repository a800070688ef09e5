"""The page in Chromium: no script error, no request, no sideways scrolling, usable by keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.browser import CHROMIUM, WHY_NOT, Page, chromium

from wikillm.report.page import write_report
from wikillm.report.plot import STYLE, Curve, Plot, svg

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT)
MIN_CONTRAST = 4.5  # WCAG 2, level AA
CONTRAST = """(() => {
  const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => {
    v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const back = light(getComputedStyle(document.documentElement).backgroundColor);
  const all = [...document.querySelectorAll("p, td, th, dt, dd, a, summary, h1, h2, text")];
  return Math.min(...all.map(one => { const style = getComputedStyle(one);
    const front = light(one.tagName == "text" ? style.fill : style.color);
    return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05); }));
})()"""
OUTSIDE = """[...document.querySelectorAll("svg.plot text")].filter(text => {
  const box = text.getBoundingClientRect();
  return box.left < 0 || box.right > document.documentElement.clientWidth; }).length"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture(scope="module")
def pages(survivor: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The page of one run, and of two."""
    folder = tmp_path_factory.mktemp("pages")
    other = folder / "other"
    shutil.copytree(survivor, other, ignore=shutil.ignore_patterns("checkpoints"))
    both = write_report([survivor, other], folder / "both.html", price=1.0)
    return [write_report([survivor], folder / "one.html"), both]


RANGES = [(0.0, 1.0), (-12345.6, 98765.4), (7.12340, 7.12349), (-3e-10, 2.5e-10), (1e12, 9e12)]


def test_no_tick_label_is_cut_off(browser: Page, tmp_path: Path) -> None:
    plots = [Plot("plot", [Curve("curve", [(0, low), (3e9, high)])]) for low, high in RANGES]
    path = tmp_path / "plots.html"
    path.write_text(f"<style>{STYLE}</style><body>{''.join(map(svg, plots))}")
    browser.open(path, 400, dark=False)
    assert browser.value("document.querySelectorAll('svg.plot text').length") > 8 * len(RANGES)
    assert browser.value(OUTSIDE.replace("length", "map(text => text.textContent)")) == []


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_readable(browser: Page, pages: list[Path], width: int, dark: bool) -> None:
    for path in pages:
        browser.requests.clear()
        browser.open(path, width, dark=dark)
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value("document.querySelectorAll('svg.plot polyline').length") > 8
        assert browser.value(OUTSIDE) == 0, "a label is cut off"
        assert browser.value(CONTRAST) >= MIN_CONTRAST
        assert browser.requests == [path.resolve().as_uri()]
        assert browser.problems == []


def test_every_part_can_be_reached_by_keyboard(browser: Page, pages: list[Path]) -> None:
    browser.open(pages[0], 1400)
    reached = set()
    for _ in range(60):
        browser.press("Tab")
        tag = browser.value("document.activeElement.tagName")
        reached.add(tag)
        if tag == "SUMMARY":
            break
    assert {"A", "SUMMARY"} <= reached
    assert not browser.value("document.activeElement.parentElement.open")
    browser.press("Enter")
    assert browser.value("document.activeElement.parentElement.open")


def test_a_script_in_a_value_does_not_run(browser: Page, pages: list[Path]) -> None:
    browser.open(pages[0], 1400)
    assert browser.value("document.querySelectorAll('script, img').length") == 0
    assert "<script>alert(1)</script>" in browser.value("document.body.innerText")
