"""``benchmarks/performance.py``: what it measures, keeps and writes; how fast is for it to say."""

import json

import growth
import performance
import performance_page
import pytest
import torch
import turns
from costs import DisagreementError
from folders import llama_folder


@pytest.fixture
def settings(tmp_path):
    # Long enough a context, and no dropout, which would differ between two forms of attention.
    folder = llama_folder(tmp_path / "llama", attention_dropout=0.0, max_position_embeddings=256)
    return performance.Settings(model=str(folder), repetitions=1, threads=1, factor=32)


def test_rows_are_measured_kept_and_written(settings, tmp_path):
    names = [
        "forward_4x512",
        "step_8x128",
        "padded_8x128",
        "paper_1x2048",
        "decode_64",
        "lorada_la",
    ]
    files = tmp_path / "performance.json", tmp_path / "performance.md"
    performance.run(settings, names, *files)
    rows = json.loads(files[0].read_text())["rows"]
    assert list(rows) == names
    page = files[1].read_text()
    for name in names:
        assert performance_page.LIMITS[name][0] in page
    again = performance.run(settings, ["saved_bytes"], *files)
    assert list(again["rows"]) == [*names, "saved_bytes"]
    assert again["rows"]["saved_bytes"]["mb"][1] == again["rows"]["saved_bytes"]["mb"][8] < 0.2


def test_a_ratio_is_that_of_the_medians_with_the_turns_extremes():
    seconds = {"on": [1.0, 2.0, 6.0], "off": [1.0, 1.0, 2.0]}
    assert turns.ratio(seconds, "on", "off") == {"ratio": 2.0, "lowest": 1.0, "highest": 3.0}


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
    short = {name: (label, points[:2]) for name, (label, points) in growth.CURVES.items()}
    monkeypatch.setattr(growth, "CURVES", short)
    file = tmp_path / "performance.json"
    growth.measure_growth(settings, file, tmp_path / "performance.md")
    assert json.loads(file.read_text())["growth"].keys() == short.keys()
    assert all((tmp_path / name).stat().st_size > 0 for name in performance_page.PICTURES.values())


def test_a_curve_compares_a_call_with_a_map_to_one_without():
    host, turn = growth.call(8, 4, 1)
    for on in (False, True):
        host.lmam.on = on
        turn(0)
        moved = [factor.grad is not None for factor in host.lmam.found[0].factors]
        assert moved == [on, on]


def test_padded_rows_are_padded(settings):
    assert not performance.batch_of(settings, 4, 512, padded=True)["attention_mask"].all()


def test_the_term_is_a_small_part_of_a_layer():
    assert growth.term_share()["share"] < 0.01


def test_the_memory_of_a_step_is_measured(settings):
    assert performance.peak_of_step(settings, "ours") >= 0
    assert performance.peak_of_step(settings, "papers") >= 0
