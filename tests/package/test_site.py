"""The check of the built documentation site: it names what is broken, and passes what is not."""

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
