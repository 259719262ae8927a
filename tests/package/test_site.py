"""The documentation: its pages, and the check of the built site, which names what is broken."""

import importlib.util
import re
import shutil
import subprocess
import sys

import architectures_page
import configs_page
import pytest
import tasks_page
from paths import ROOT
from programs import printed

import lorada

CHECK = ROOT / ".ci/check_site.py"


def checked(site, html):
    (site / "guide").mkdir(parents=True)
    (site / "picture.png").touch()
    (site.parent / "outside.txt").touch()
    (site / "guide/index.html").write_text('<h1 id="start">A guide</h1>')
    (site / "index.html").write_text(html)
    return subprocess.run([sys.executable, CHECK, site], capture_output=True, text=True)


GOOD = '<a href="guide/#start">a</a><a href="https://example.org">b</a><img src="picture.png">'
BROKEN = {
    '<a href="nowhere/">a</a>': "links to nowhere/, which is not there",
    '<a href="../outside.txt">a</a>': "links to ../outside.txt, which is not there",
    '<a href="guide/#end">a</a>': "links to guide/#end, but that page has no such anchor",
    '<img src="lost.png">': "links to lost.png, which is not there",
    '<script src="https://a.org/x.js"></script>': "loads https://a.org/x.js from another host",
}


@pytest.mark.parametrize("html", [GOOD, *BROKEN])
def test_what_is_broken_in_a_site_is_named(tmp_path, html):
    done = checked(tmp_path / "site", html)
    assert done.returncode == (html in BROKEN), done.stdout
    if html in BROKEN:
        assert done.stdout == f"index.html {BROKEN[html]}\n"


# Files that name pages of the documentation, in links, messages and comments.
FOLDERS = (
    "src",
    "docs",
    "tests",
    "benchmarks",
    "scripts",
    "studies",
    "packages",
    "examples",
    ".ci",
)
FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml")
TEXT = {".py", ".md", ".yaml", ".toml", ".j2", ".js"}


def test_every_page_that_a_file_names_is_there():
    named, found = set(), [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    for path in [*(ROOT / name for name in FILES), *found]:
        if path.name in FILES or path.suffix in TEXT:
            text = path.read_text(encoding="utf-8")
            pages = re.findall(r"\bdocs/(?:[a-z]+/)?[a-z0-9-]+\.md", text)
            named |= {(page, path.relative_to(ROOT)) for page in pages}
    assert len(named) > 40
    assert [(page, str(path)) for page, path in named if not (ROOT / page).is_file()] == []


SCRIPTS = (architectures_page, configs_page, tasks_page)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_page_is_what_its_script_writes(script):
    written = script.PAGE.read_text(encoding="utf-8")
    page = script.page(written) if script is architectures_page else script.page()
    assert written == page, f"run: python scripts/{script.__name__}.py"


def test_notes_on_the_page_of_tasks_are_of_benchmarks_that_there_are():
    assert tasks_page.NOTES.keys() <= {task.benchmark for task in lorada.TASKS.values()}


@pytest.mark.skipif(not importlib.util.find_spec("zensical"), reason="needs the extra docs")
def test_the_built_site_has_every_public_name_and_needs_no_torch(tmp_path):
    for name in ("docs", "src", "examples"):
        left_out = shutil.ignore_patterns("results", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=left_out)
    for name in ("CONTRIBUTING.md", "zensical.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "without").mkdir()
    # A torch that cannot be imported: the site is made from the source alone.
    (tmp_path / "without/torch.py").write_text("raise ImportError('the site needs no torch')")
    build = ("-m", "zensical", "build", "--strict")
    printed(sys.executable, *build, folder=tmp_path, PYTHONPATH=str(tmp_path / "without"))
    pages = (path.read_text() for path in (tmp_path / "site/reference").rglob("*.html"))
    anchors = {anchor for page in pages for anchor in re.findall(r'id="(lorada[\w.]*)"', page)}
    assert {f"lorada.{name}" for name in lorada.__all__} - anchors == set()
    found = {f"lorada.functional.{name}" for name in lorada.functional.__all__}
    assert found - anchors == set()
    assert not any(part.startswith("_") and not part.startswith("__")
                   for anchor in anchors for part in anchor.split("."))  # fmt: skip
    printed(sys.executable, CHECK, tmp_path / "site")
