"""Take pictures of a report in headless Chromium: ``python docs/screenshots.py results/demo/report.html FOLDER``.

Writes ``report.png`` (the first screens at 1440 px, for the README), and the whole page at 1440 and 375 px, light and dark.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


def main(page_path: Path, folder: Path) -> None:
    """Take every picture."""
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for width, scheme in ((1440, "light"), (375, "light"), (1440, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.goto(page_path.resolve().as_uri())
            page.screenshot(path=folder / f"page-{width}-{scheme}.png", full_page=True)
            if (width, scheme) == (1440, "light"):
                page.screenshot(path=folder / "report.png", full_page=True, clip={"x": 96, "y": 0, "width": 1248, "height": 1420})
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
