"""Take a picture of a comparison's report: the verdict, the table, and score over cost.

    python scripts/report_picture.py comparison/report.html docs/compare.png

It needs playwright and Chromium.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main(page_file: Path, picture: Path) -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1320, "height": 900})
        page.goto(page_file.resolve().as_uri())
        page.wait_for_selector("canvas, svg.marks")
        # Up to the third heading: the two sections after the verdict.
        bottom = page.locator("h2").nth(2).bounding_box()
        assert bottom is not None
        page.set_viewport_size({"width": 1320, "height": int(bottom["y"])})
        page.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
