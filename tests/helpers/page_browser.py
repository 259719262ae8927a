"""Opens a written page in a headless Chromium without a network."""

import shutil
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None, reason="needs playwright and chromium"
)


@pytest.fixture(scope="module")
def browser():
    """A started Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def watched(browser, path):
    """A function that opens the page, which must make no request and no error until the end."""
    contexts, requests, errors = [], [], []

    def open_page(**options):
        contexts.append(browser.new_context(offline=True, **options))
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    # The empty icon is a data: address, which the browser counts as a request.
    outside = {url for url in requests if not url.startswith("data:")}
    assert outside == {path.as_uri()}


@pytest.fixture
def opened(browser, request, tmp_path):
    """A function that opens a page, as the module's ``page_of`` writes it, in a watched browser.

    The page is returned when the module's ``READY``, a selector, is there.
    """
    path = tmp_path / "page.html"
    with watched(browser, path) as open_page:

        def opened_page(data, **options):
            path.write_text(request.module.page_of(data), encoding="utf-8")
            page = open_page(**options)
            page.wait_for_selector(getattr(request.module, "READY", "html"), state="attached")
            return page

        yield opened_page


def widest(page):
    """The width in pixels that the page's content takes."""
    return page.evaluate("document.documentElement.scrollWidth")
