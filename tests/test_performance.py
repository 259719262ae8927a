"""``benchmarks/performance.py``: what it measures, keeps and writes; how fast is for it to say."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from folders import llama_folder

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import growth  # noqa: E402
import performance  # noqa: E402
import performance_page  # noqa: E402
from costs import DisagreementError  # noqa: E402


@pytest.fixture
def settings(tmp_path):
    # Long enough a context, and no dropout, which would differ between two forms of attention.
    folder = llama_folder(tmp_path / "llama", attention_dropout=0.0, max_position_embeddings=256)
    return performance.Settings(model=str(folder), repetitions=1, threads=1, factor=32)


def test_rows_are_measured_kept_and_written(settings, tmp_path):
    names = ["forward_4x512", "step_8x128", "paper_1x2048", "decode_64", "lorada_la"]
    files = tmp_path / "performance.json", tmp_path / "performance.md"
    performance.run(settings, names, *files)
    rows = json.loads(files[0].read_text())["rows"]
    assert list(rows) == names
    assert all(rows[name]["lowest"] <= rows[name]["ratio"] * 1.0001 for name in names)
    page = files[1].read_text()
    for name in names:
        assert performance_page.LIMITS[name][0] in page
    again = performance.run(settings, ["saved_bytes"], *files)
    assert list(again["rows"]) == [*names, "saved_bytes"]
    assert again["rows"]["saved_bytes"]["mb"][1] == again["rows"]["saved_bytes"]["mb"][8] < 0.2


def test_the_papers_form_is_only_timed_if_it_computes_the_same(settings, monkeypatch):
    monkeypatch.setattr(
        performance.papers_form, "low_rank_map", lambda *x: torch.ones(4, 128, 128) / 100
    )
    with pytest.raises(DisagreementError):
        performance.against_the_paper(settings)


def test_a_figure_above_its_limit_is_not_called_met():
    rows = {"step_8x128": {"ratio": 1.05, "lowest": 1.0, "highest": 1.1}}
    ((*_, met),) = performance_page.lines(rows)
    assert met == "**no**"
    rows["step_8x128"]["ratio"] = 1.03
    ((*_, met),) = performance_page.lines(rows)
    assert met == "yes"


def test_curves_are_measured_and_drawn(settings, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="needs the plots extra")
    monkeypatch.setattr(
        growth,
        "CURVES",
        {name: (label, points[:2]) for name, (label, points) in growth.CURVES.items()},
    )
    growth.measure_growth(settings, tmp_path / "performance.json", tmp_path / "performance.md")
    assert set(json.loads((tmp_path / "performance.json").read_text())["growth"]) == {
        *growth.CURVES
    }
    assert all((tmp_path / name).stat().st_size > 0 for name in performance_page.PICTURES.values())


def test_the_term_is_a_small_part_of_a_layer():
    assert growth.term_share()["share"] < 0.01


def test_the_memory_of_a_step_is_measured(settings):
    assert performance.peak_of_step(settings, "ours") >= 0
    assert TINY["llama"]().config._attn_implementation != performance.papers_form.NAME
