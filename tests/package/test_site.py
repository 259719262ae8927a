"""The documentation: its pages, and the check of the built site, which names what is broken."""

import re
import subprocess
import sys

import pytest
from paths import ROOT

CHECK = ROOT / ".ci/check_site.py"


def checked(site, html):
    (site / "guide").mkdir(parents=True)
    (site / "picture.png").touch()
    (site.parent / "outside.txt").touch()
    (site / "guide/index.html").write_text('<h1 id="start">A guide</h1>')
    (site / "index.html").write_text(html)
    return subprocess.run([sys.executable, CHECK, site], capture_output=True, text=True)


def test_a_site_whose_links_lead_somewhere_passes(tmp_path):
    html = '<a href="guide/#start">a</a><a href="https://example.org">b</a><img src="picture.png">'
    done = checked(tmp_path / "site", html)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("html", "message"),
    [
        ('<a href="nowhere/">a</a>', "links to nowhere/, which is not there"),
        ('<a href="../outside.txt">a</a>', "links to ../outside.txt, which is not there"),
        ('<a href="guide/#end">a</a>', "links to guide/#end, but that page has no such anchor"),
        ('<img src="lost.png">', "links to lost.png, which is not there"),
        (
            '<script src="https://cdn.example.org/x.js"></script>',
            "loads https://cdn.example.org/x.js from another host",
        ),
    ],
)
def test_what_is_broken_is_named(tmp_path, html, message):
    done = checked(tmp_path / "site", html)
    assert done.returncode == 1
    assert done.stdout == f"index.html {message}\n"


# Files that name pages of the documentation, in links, messages and comments.
FOLDERS = ("src", "docs", "tests", "benchmarks", "scripts", "packages", ".ci")
FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml")
TEXT = {".py", ".md", ".yaml", ".toml", ".j2", ".js"}


def texts():
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    for path in [*(ROOT / name for name in FILES), *found]:
        if path.name in FILES or (path.suffix in TEXT and "saved_before" not in path.parts):
            yield path, path.read_text(encoding="utf-8")


def test_every_page_that_a_file_names_is_there():
    named = {
        (page, path.relative_to(ROOT))
        for path, text in texts()
        for page in re.findall(r"\bdocs/(?:[a-z]+/)?[a-z0-9-]+\.md", text)
    }
    assert len(named) > 40
    assert [(page, str(path)) for page, path in named if not (ROOT / page).is_file()] == []


def test_the_pages_beside_guides_and_reference_are_at_most_fifteen():
    pages = list((ROOT / "docs").glob("*.md"))
    assert len(pages) <= 15
    navigation = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    assert [page.name for page in pages if f'"{page.name}"' not in navigation] == []


def test_the_page_on_performance_is_short():
    assert len((ROOT / "docs/performance.md").read_text().splitlines()) <= 120
