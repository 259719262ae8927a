"""The explorer's page as a file: what is in it, how large it is, and which data it refuses."""

import base64
import hashlib
import html
import re
import zlib

import numpy as np
import pytest
from folders import refused
from made_up_explorer import made_up_page

pytest.importorskip("jinja2", reason="needs the extra explore")

from lorada.explore.explorer_page import explorer_page, pack


def unpacked(packed):
    """The array of ``pack``, as the format says it."""
    whole = zlib.decompress(base64.b64decode(packed["data"]), wbits=-15)
    return np.frombuffer(whole, "<i2").reshape(packed["shape"]) / 32767 * packed["scale"]


def test_a_matrix_comes_back_within_the_rounding_of_sixteen_bits():
    matrices = np.random.default_rng(0).normal(0, 3, (4, 5, 7))
    packed = pack(matrices)
    assert packed["scale"] == np.abs(matrices).max()
    assert np.abs(unpacked(packed) - matrices).max() <= packed["scale"] / 65534 * (1 + 1e-9)
    assert not unpacked(pack(np.zeros((2, 3, 3)))).any()
    refused("not finite", lambda: pack(np.full((1, 2, 2), np.nan)))


def test_a_page_for_thirty_layers_and_three_sentences_is_below_two_megabytes():
    lengths = (12, 16, 20)
    tokens = [[f" word{i}" for i in range(length)] for length in lengths]
    page = explorer_page(made_up_page(tokens, layers=30, heads=9))
    assert 500_000 < len(page.encode()) < 2_000_000


def test_the_page_names_no_address_and_its_policy_allows_its_scripts_alone():
    page = explorer_page(made_up_page())
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert len(hashes) == 6
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    policy = html.unescape(re.search(r'Security-Policy" content="([^"]*)"', page)[1])
    assert policy.startswith(f"default-src 'none'; script-src {allowed}; style-src")
    assert "http" not in policy
    assert set(re.findall(r"https?://[^\s\"'`)]+", page)) == {"http://www.w3.org/2000/svg"}
    assert re.findall(r'(?:src|href|action)="([^"]*)"', page) == ["data:,"]
    assert not re.search(r"@import|url\(", page)
