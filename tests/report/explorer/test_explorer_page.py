"""The explorer's page as a file: what is in it, how large it is, and which data it refuses."""

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up_explorer import SENTENCE, made_up_page

pytest.importorskip("jinja2", reason="needs the extra explore")

from lorada.report.explorer.data import pack
from lorada.report.explorer.page import explorer_page

HOSTILE = (
    "<img src=x onerror='window.hacked=1'>",
    "</script><script>window.hacked=1</script>",
    "<!--<script>",
    "\"><svg onload=window.hacked=1>",
    "{{ 7 * 7 }} &lt;b&gt;",
    "\u202egnisrever",
    "עברית",
    "👩‍👩‍👧",
    "\n",
    "\ud800",
    "",
)  # fmt: skip


def unpacked(packed):
    """The array of ``pack``, as the format says it."""
    whole = zlib.decompress(base64.b64decode(packed["data"]), wbits=-15)
    return np.frombuffer(whole, "<i2").reshape(packed["shape"]) / 32767 * packed["scale"]


class Outline(HTMLParser):
    """What a browser finds in a page: tags, headings, scripts and addresses."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.scripts, self.policy = [], [], [], ""
        self.within = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.addresses += [found[name] for name in ("src", "href", "action") if name in found]
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]
        self.within = found.get("type", "runs") if tag == "script" else None

    def handle_data(self, data):
        if self.within:
            self.scripts.append((self.within, data))

    def handle_endtag(self, tag):
        self.within = None

    def data(self):
        (text,) = [text for kind, text in self.scripts if kind == "application/json"]
        return json.loads(text)


def test_a_matrix_comes_back_within_the_rounding_of_sixteen_bits():
    matrices = np.random.default_rng(0).normal(0, 3, (4, 5, 7))
    packed = pack(matrices)
    assert packed["scale"] == np.abs(matrices).max()
    assert np.abs(unpacked(packed) - matrices).max() <= packed["scale"] / 65534 * (1 + 1e-9)
    assert np.abs(unpacked(packed)).max() == pytest.approx(packed["scale"])


def test_zeros_stay_zeros():
    packed = pack(np.zeros((2, 3, 3)))
    assert packed["scale"] == 0
    assert not unpacked(packed).any()


@pytest.mark.parametrize(
    ("matrices", "words"),
    [(np.zeros((3, 3)), r"shape \(3, 3\)"), (np.full((1, 2, 2), np.nan), "not finite")],
)
def test_what_is_no_matrix_is_refused(matrices, words):
    with pytest.raises(ValueError, match=words):
        pack(matrices)


def test_the_same_data_give_the_same_page():
    assert explorer_page(made_up_page()) == explorer_page(made_up_page())


def test_a_page_for_thirty_layers_and_three_sentences_is_below_two_megabytes():
    lengths = (12, 16, 20)
    tokens = [[f" word{i}" for i in range(length)] for length in lengths]
    page = explorer_page(made_up_page(tokens, layers=30, heads=9))
    assert 500_000 < len(page.encode()) < 2_000_000


def test_the_policy_allows_the_page_its_scripts_and_nothing_else():
    outline = Outline(explorer_page(made_up_page()))
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind, text in outline.scripts
        if kind == "runs"
    ]
    assert len(hashes) == 6
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    assert outline.policy.startswith(f"default-src 'none'; script-src {allowed}; style-src")
    assert "http" not in outline.policy


def test_the_page_names_no_address_outside_itself():
    page = explorer_page(made_up_page())
    assert set(re.findall(r"https?://[^\s\"'`)]+", page)) == {"http://www.w3.org/2000/svg"}
    assert Outline(page).addresses == ["data:,"]
    assert not re.search(r"@import|url\(", page)


def test_hostile_texts_stay_text():
    data = made_up_page([list(HOSTILE)], parts=HOSTILE[:2], runs=HOSTILE[:2])
    data["title"] = data["runs"][0]["method"] = HOSTILE[1]
    for layer in data["runs"][0]["shown"][0][0]["layers"]:
        layer["name"] = HOSTILE[0]
    plain = Outline(explorer_page(made_up_page([list(HOSTILE)], runs=("a", "b"))))
    outline = Outline(explorer_page(data))
    assert [tag for tag in outline.tags if tag not in ("bdi", "b")] == [
        tag for tag in plain.tags if tag not in ("bdi", "b")
    ]
    found = outline.data()
    assert found["sentences"][0] == list(HOSTILE)
    assert [run["name"] for run in found["runs"]] == list(HOSTILE[:2])


def test_a_number_that_is_not_finite_is_refused():
    data = made_up_page([SENTENCE], layers=2)
    data["runs"][0]["shown"][0][0]["layers"][0]["moved"][0] = float("nan")
    with pytest.raises(ValueError, match="Out of range"):
        explorer_page(data)
