"""Take pictures of a comparison's report: all that comes first, the verdict, and score over cost.

    python scripts/report_picture.py comparison/report.html docs/compare.png

The verdict alone goes beside the picture as ``…-verdict.png``, score over cost as ``…-scores.png``.
It needs playwright and Chromium.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDE = 1480


def main(page_file: Path, picture: Path) -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDE, "height": 900})
        page.goto(page_file.resolve().as_uri())
        # The table, score over cost, and what follows: three headings below the verdict.
        tops = [page.locator("h2").nth(number).evaluate(TOP) for number in range(3)]
        parts = {"": (0, tops[2]), "-verdict": (0, tops[0]), "-scores": (tops[1], tops[2])}
        for name, (top, bottom) in parts.items():
            page.screenshot(
                path=picture.with_stem(picture.stem + name), full_page=True,
                clip={"x": 0, "y": top, "width": WIDE, "height": bottom - top},
            )  # fmt: skip
        browser.close()


TOP = "one => one.getBoundingClientRect().top + scrollY"

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
