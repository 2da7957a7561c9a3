"""The page in a real browser: quiet console, sorting, folding, dark mode, and no overflow on phone or desktop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest_report import TOY

from atlas.harness.study import Study
from atlas.report import write_claims, write_figures, write_report, write_table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
DIGITS, CURVE = "image-classification/digits", f"{TOY}/curve"


def build(study: Study) -> Path:
    """Write everything, with one run that failed and a name that is as long as names get."""
    failed = next(run for run in study.runs if run.seed == 1)
    failed.metrics.unlink()
    line = "a_very_long_word_without_any_space_" * 8
    failed.failure.write_text(json.dumps({"stage": "train", "error": line, "log": f"logs/{line}", "tail": [line, line]}))
    for table in study.tables:
        write_table(study, *table)
        write_figures(study, *table)
    write_claims(study)
    return write_report(study)


def opened(path: Path) -> Iterator[playwright.Page]:
    """The page in a browser; anything that it complains about or loads is an error."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else problems.append(request.url))
        page.goto(path.resolve().as_uri())
        yield page
        browser.close()
        assert not problems


@pytest.fixture
def page(study: Study) -> Iterator[playwright.Page]:
    yield from opened(build(study))


@pytest.fixture
def wide_page(two_tasks: Study) -> Iterator[playwright.Page]:
    yield from opened(build(two_tasks))


def column(page: playwright.Page, table: str, place: int) -> list[str]:
    cells = page.locator(f'table[data-table="{table}"] tbody tr > :nth-child({place})')
    return [text.split("\n")[0] for text in cells.all_inner_texts()]


def test_tables_sort_by_mouse_and_keyboard(page: playwright.Page) -> None:
    heading = page.locator(f'table[data-table="{DIGITS}"] thead th').nth(2)
    heading.click(position={"x": 3, "y": 3})  # anywhere in the heading
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(page, DIGITS, 1)[0] == "FeatScale"
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(page, DIGITS, 1)[0] == "AttnScale"
    assert column(page, DIGITS, 1)[-1] == "FeatScale"


def test_numbers_sort_by_value_and_gaps_last(wide_page: playwright.Page) -> None:
    heading = wide_page.locator(f'table[data-table="{CURVE}"] thead th').nth(2)
    heading.click()
    assert column(wide_page, CURVE, 1) == ["Fast & <b>new</b>", "Plain"]
    wide_page.evaluate("document.querySelector('[data-method=plain] td[data-value]:nth-child(3)').dataset.value = ''")
    heading.click()
    assert column(wide_page, CURVE, 1)[-1] == "Plain"


def test_sections_fold(page: playwright.Page) -> None:
    details = page.locator("article > details", has_text="Provenance of each run")
    assert details.get_attribute("open") is None
    assert not details.locator("table").is_visible()
    details.locator("summary").first.click()
    assert details.locator("table").is_visible()
    details.locator("summary").first.click()
    assert not details.locator("table").is_visible()


def test_a_link_opens_what_it_leads_to(page: playwright.Page) -> None:
    page.evaluate("document.querySelector('details.problems').open = false")
    page.locator("a.flag").first.click()
    page.locator("details.problems li").first.wait_for(state="visible")


def background(page: playwright.Page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def line_color(page: playwright.Page) -> str:
    return page.evaluate("getComputedStyle(document.querySelector('.canvas text')).fill")


def test_dark_mode_follows_the_system_and_the_button(page: playwright.Page) -> None:
    light, drawn = background(page), line_color(page)
    page.emulate_media(color_scheme="dark")
    assert background(page) != light
    assert line_color(page) != drawn  # figures take part
    assert page.locator("#theme").get_attribute("aria-pressed") == "true"
    page.locator("#theme").click()
    assert background(page) == light
    assert page.locator("#theme").get_attribute("aria-pressed") == "false"


CONTRAST = """scheme => {
    const channel = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
    const numbers = text => text.match(/[\\d.]+/g).map(Number);
    const behind = e => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
    return [...document.querySelectorAll('p, h1, h2, h3, td, th, dt, dd, .sub, .sign, .verdict, a, summary, .note')]
        .filter(e => e.textContent.trim() && e.offsetParent)
        .map(e => { const [a, b] = [luminance(numbers(getComputedStyle(e).color)), luminance(behind(e))];
            return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.className || e.tagName]; })
        .filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(page: playwright.Page, scheme: str) -> None:
    """At least 4.5 : 1, WCAG 2 level AA."""
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate(CONTRAST, scheme) == []


@pytest.mark.parametrize("width", [375, 768, 1440])
def test_nothing_overflows(wide_page: playwright.Page, width: int) -> None:
    page = wide_page
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """width => [...document.querySelectorAll('body *')]
            .filter(e => !e.closest('.scroll, .canvas > *, pre, .skip') && e.getBoundingClientRect().right > width + 1)
            .map(e => e.tagName + '.' + e.className)""",
        width,
    )
    assert outside == []
    # what is wider than the screen scrolls inside its own frame
    frames = page.locator(".scroll, .canvas, pre")
    assert frames.count() >= 8
    for frame in frames.all():
        assert frame.evaluate("e => getComputedStyle(e).overflowX") == "auto"


def test_the_first_screen_answers(page: playwright.Page) -> None:
    for width, height in ((1440, 900), (375, 812)):
        page.set_viewport_size({"width": width, "height": height})
        for text in ("11 of 12 evaluated", "2 January 2026", "a processor, 2 cores", "of training and evaluation"):
            box = page.get_by_text(text).first.bounding_box()
            assert box is not None
            assert box["y"] + box["height"] <= height


def test_print_shows_what_is_folded(page: playwright.Page) -> None:
    closed = "document.querySelectorAll('details:not([open])').length"
    before = page.evaluate(closed)
    assert before > 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(closed) == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(closed) == before


def test_pictures_are_described_and_titles_are_text(page: playwright.Page) -> None:
    pictures = page.get_by_role("img")
    assert pictures.count() >= 1
    for picture in pictures.all():
        assert picture.get_attribute("aria-label") or picture.get_attribute("alt")
        box = picture.bounding_box()
        assert box is not None
        assert box["width"] > 100
        assert box["height"] > 50
    assert page.locator("text=<script>alert(1)<-script>").first.is_visible()


def test_the_demo_page_of_the_checkout(checkout: Path) -> None:
    """The page that visitors read is quiet, too, and fits a phone."""
    path = checkout / "results" / "demo" / "report.html"
    if not path.is_file():
        pytest.skip("the demo study has not run here")
    for page in opened(path):
        page.set_viewport_size({"width": 375, "height": 812})
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
