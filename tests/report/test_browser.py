"""The page in a real browser: quiet console, sorting, folding, dark mode, and no overflow on phone or desktop."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

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


@pytest.fixture
def page(study: Study) -> Iterator[playwright.Page]:
    write_table(study, "image-classification", "digits")
    write_figures(study, "image-classification", "digits")
    write_claims(study)
    path = write_report(study)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1440, "height": 900})
        problems: list[str] = []
        opened.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else problems.append(request.url))
        opened.goto(path.resolve().as_uri())
        yield opened
        browser.close()
        assert not problems


def column(page: playwright.Page, index: int) -> list[str]:
    cells = page.locator(f'table[data-table="image-classification/digits"] tbody tr > :nth-child({index})')
    return [text.split("\n")[0] for text in cells.all_inner_texts()]


def test_tables_sort_by_mouse_and_keyboard(page: playwright.Page) -> None:
    heading = page.locator('table[data-table="image-classification/digits"] thead th').nth(2)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(page, 1)[0] == "FeatScale"
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(page, 1)[0] == "AttnScale"
    assert column(page, 1)[-1] == "FeatScale"


def test_sections_fold(page: playwright.Page) -> None:
    details = page.locator("article details").first
    assert details.get_attribute("open") is None
    details.locator("summary").first.click()
    assert details.get_attribute("open") is not None
    assert details.locator("table").is_visible()


def background(page: playwright.Page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_dark_mode_follows_the_system_and_the_button(page: playwright.Page) -> None:
    page.emulate_media(color_scheme="light")
    light = background(page)
    page.emulate_media(color_scheme="dark")
    dark = background(page)
    assert light != dark
    page.locator("#theme").click()
    assert background(page) == light


@pytest.mark.parametrize("width", [375, 1440])
def test_nothing_overflows(page: playwright.Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for summary in page.locator("details:not([open]) > summary").all():
        if summary.is_visible():
            summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """width => [...document.querySelectorAll('body *')]
            .filter(e => !e.closest('.scroll, pre') && e.getBoundingClientRect().right > width + 1)
            .map(e => e.tagName + '.' + e.className)""",
        width,
    )
    assert outside == []


def test_pictures_are_described_and_titles_are_text(page: playwright.Page) -> None:
    images = page.locator("figure img")
    assert images.count() >= 1
    for image in images.all():
        assert image.get_attribute("alt")
        assert image.evaluate("e => e.complete && e.naturalWidth > 0 || e.loading === 'lazy'")
    assert page.locator("text=<script>alert(1)<-script>").first.is_visible()
