"""``measure_map_costs.py`` and ``measure_map_growth.py``: what they measure, save and write."""

import json
import logging
import sys

import measure_map_costs as performance
import measure_map_growth as growth
import pytest
import torch
from conftest import assert_close, assert_same_gradients
from folders import llama_folder
from library import fresh_process, map_costs_page, measuring, paper_attention, timing
from library.agreement import DisagreementError
from library.measuring import Request

from lorada.functional.maps import add_map_reference, low_rank_map

NAMES = ["forward_4x512", "padded_8x128", "paper_1x2048", "decode_padded"]
UNREACHED = "a row that must not be measured"


@pytest.fixture
def settings(tmp_path):
    # Long enough a context, and no dropout, which would differ between two forms of attention.
    folder = llama_folder(tmp_path / "llama", attention_dropout=0.0, max_position_embeddings=256)
    return performance.Settings(model=str(folder), repetitions=1, threads=1, factor=32)


@pytest.fixture
def files(tmp_path):
    return tmp_path / "performance.json", tmp_path / "performance.md"


@pytest.fixture
def one_row(monkeypatch):
    """A benchmark of one row, which takes no time; what is measured is counted."""
    measured = []

    def measure(settings):
        measured.append(settings)
        return {"ratio": 1.0, "lowest": 1.0, "highest": 1.0}

    monkeypatch.setattr(performance, "ROWS", {"step_8x128": measure})
    return measured


def test_rows_are_measured_kept_and_written(settings, files):
    performance.run(Request(settings, *files, NAMES))
    rows = json.loads(files[0].read_text())["rows"]
    assert list(rows) == NAMES
    assert all(row["code"] == measuring.package_code() for row in rows.values())
    page = files[1].read_text()
    for name in NAMES:
        assert map_costs_page.LIMITS[name][0] in page
    assert "sizes divided by 32" in page
    assert map_costs_page.OLDER not in page
    again = performance.run(Request(settings, *files, ["saved_bytes"]))
    assert list(again["rows"]) == [*NAMES, "saved_bytes"]
    assert again["rows"]["saved_bytes"]["mb"][1] == again["rows"]["saved_bytes"]["mb"][8] < 0.2


def test_a_ratio_is_that_of_the_medians_with_the_turns_extremes():
    seconds = {"on": [1.0, 2.0, 6.0], "off": [1.0, 1.0, 2.0]}
    assert timing.ratio(seconds, "on", "off") == {"ratio": 2.0, "lowest": 1.0, "highest": 3.0}


@pytest.mark.parametrize("name", ["forward_4x512", "step_8x128", "decode_64", "peak_1x2048"])
def test_a_row_is_only_measured_if_it_computes_the_same(settings, files, monkeypatch, name):
    wrong_map = torch.ones(4, 128, 128) / 100
    monkeypatch.setattr(paper_attention, "low_rank_map", lambda *factors: wrong_map)
    monkeypatch.setattr(performance, "time_in_turns", lambda *x: pytest.fail(UNREACHED))
    monkeypatch.setattr(fresh_process, "call", lambda *x: pytest.fail(UNREACHED))
    with pytest.raises(DisagreementError, match=f"{name} was not measured"):
        performance.run(Request(settings, *files, [name]))
    assert not files[0].exists()


def test_a_curve_is_only_measured_if_it_computes_the_same(monkeypatch):
    module = growth.module_with_map(4, causal=True)
    growth.check(module, 8, 1)
    monkeypatch.setattr(paper_attention, "low_rank_map", lambda w_a, w_b, inverse: w_a @ w_b)
    with pytest.raises(DisagreementError, match="output"):
        growth.check(module, 8, 1)


def test_a_map_alone_that_does_other_work_is_not_timed(monkeypatch):
    module = growth.module_with_map(4, causal=True)
    monkeypatch.setattr(growth, "with_parts", lambda attend: lambda m, q, k, v, mask, **_: (
        attend()[0] + 0 * (v.sum() + sum(p.sum() for p in m.parameters())), None,
    ))  # fmt: skip
    with pytest.raises(DisagreementError, match="own gradient of V"):
        growth.check(module, 8, 1)


@pytest.mark.fp64
@pytest.mark.parametrize("tokens", [6, 3], ids=["longer", "shorter"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_the_papers_form_adds_what_the_slow_twin_adds(causal, tokens):
    module = growth.module_with_map(4, causal=causal)
    w_a, w_b = (p for name, p in module.named_parameters() if ".lora_w_" in name)
    query, key, value = (
        torch.randn(2, heads, tokens, growth.WIDTH, requires_grad=True) for heads in (9, 3, 3)
    )
    found, weights = paper_attention.attend(module, query, key, value, None, 0.1)
    plain = (query @ key.repeat_interleave(3, 1).mT * 0.1).softmax(-1)
    fused = add_map_reference(plain, low_rank_map(w_a, w_b, 1.0), causal=causal)
    wanted = (fused @ value.repeat_interleave(3, 1)).transpose(1, 2)
    assert_close(weights, fused)
    assert_same_gradients(found, wanted, [w_a, w_b, query, key, value])


def test_only_what_is_missing_is_measured(settings, files, one_row):
    for _ in range(2):
        performance.run(Request(settings, *files))
    assert len(one_row) == 1
    performance.run(Request(settings, *files, ["step_8x128"]))
    performance.run(Request(settings, *files, overwrite=True))
    assert len(one_row) == 3


@pytest.mark.parametrize("script", [performance, growth], ids=["rows", "growth"])
def test_results_of_other_settings_are_left_alone(tmp_path, one_row, monkeypatch, capsys, script):
    monkeypatch.setattr(logging, "disable", lambda level: None)  # for the rest of the process
    words = ["benchmark", "--output", str(tmp_path), "--repetitions", "1"]
    monkeypatch.setattr(sys, "argv", words)
    performance.main()
    before = (tmp_path / "performance.json").read_text()
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [*words, "--factor", "32"])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "factor 1, not 32: pass --output DIR, or --overwrite" in error
    assert error.count("\n") == 1
    assert (tmp_path / "performance.json").read_text() == before
    assert len(one_row) == 1


def test_rows_of_other_code_are_marked(settings, files, one_row):
    performance.run(Request(settings, *files))
    results = json.loads(files[0].read_text())
    (new,) = results["rows"].values()
    results["rows"]["step_1x2048"] = {**new, "code": "0", "measured": "2020-01-01T00:00:00+00:00"}
    results["rows"]["forward_4x512"] = {"ratio": 1.0, "lowest": 1.0, "highest": 1.0}
    older = [map_costs_page.OLDER in line[0] for line in map_costs_page.lines(results)]
    assert older == [True, False, True]  # forward, 8×128, 1×2048
    assert "not known" in map_costs_page.marked_text(results)


def test_a_figure_above_its_limit_is_not_called_met():
    for ratio, said in ((1.05, "**no**"), (1.03, "yes")):
        row = {"ratio": ratio, "lowest": 1.0, "highest": 1.1}
        ((*_, met),) = map_costs_page.lines({"rows": {"step_8x128": row}})
        assert met == said
