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
from library import map_costs_page, measuring, paper_attention
from library.agreement import DisagreementError
from library.measuring import Request

from lorada.functional.maps import add_map_reference, low_rank_map

NAMES = ["forward_4x512", "padded_8x128", "paper_1x2048", "decode_padded"]


@pytest.fixture
def settings(tmp_path):
    # Long enough a context, and no dropout, which would differ between two forms of attention.
    folder = llama_folder(tmp_path / "llama", attention_dropout=0.0, max_position_embeddings=256)
    return performance.Settings(model=str(folder), repetitions=1, threads=1, factor=32)


@pytest.fixture
def files(tmp_path):
    return tmp_path / "performance.json", tmp_path / "performance.md"


def run_with(monkeypatch, script, settings, folder, **changes):
    """Run a script as from the command line, its results and its page in a folder."""
    options = {**vars(settings), "output": folder, **changes}
    words = [f"--{key}={value}" for key, value in options.items()]
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    script.main()


@pytest.mark.more
def test_rows_are_measured_and_written_and_those_of_other_settings_left_alone(
    settings, files, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(logging, "disable", lambda level: None)  # for the rest of the process
    run_with(monkeypatch, performance, settings, tmp_path, rows=",".join(NAMES))
    run_with(monkeypatch, growth, settings, tmp_path, rows="batch")
    run_with(monkeypatch, performance, settings, tmp_path, rows="operations")
    results = json.loads(files[0].read_text())
    assert list(results["rows"]) == [*NAMES, "operations"]
    operations = results["rows"]["operations"]
    assert 0 < operations["term"] < operations["layer"] / 1000
    assert len(results["growth"]["batch"]["points"]) == 6
    page = files[1].read_text()
    assert all(map_costs_page.LIMITS[name][0] in page for name in NAMES)
    assert (tmp_path / "growth-batch.png").is_file()
    for script in (performance, growth):
        capsys.readouterr()
        with pytest.raises(SystemExit, match=r"^2$"):
            run_with(monkeypatch, script, settings, tmp_path, factor=16)
        error = capsys.readouterr().err
        assert "factor 32, not 16: pass --output DIR, or --overwrite" in error
        assert error.count("\n") == 1
    assert json.loads(files[0].read_text()) == results


def test_a_row_shows_its_day_and_stays_where_no_package_that_decides_it_has_changed(
    settings, files, monkeypatch
):
    request = Request(settings, *files, ["forward_4x512"])
    performance.run(request)
    row = json.loads(files[0].read_text())["rows"]["forward_4x512"]
    (line,) = [line for line in files[1].read_text().splitlines() if "| forward 4" in line]
    assert line.endswith(f"| {row['measured'][:10]} |")
    installed = measuring.versions()
    others = {**installed, "accelerate": "0", "torch": "0"}
    monkeypatch.setattr(measuring, "versions", lambda: others)
    with pytest.raises(ValueError, match=r"torch .*, not 0: pass") as error:
        performance.run(request)
    assert "accelerate" not in str(error.value)


@pytest.mark.more
def test_a_row_is_only_measured_if_it_computes_the_same(settings, files, monkeypatch):
    wrong_map = torch.ones(4, 128, 128) / 100
    monkeypatch.setattr(paper_attention, "low_rank_map", lambda *factors: wrong_map)
    monkeypatch.setattr(performance, "time_in_turns", lambda *x: pytest.fail("not the same"))
    with pytest.raises(DisagreementError, match="step_8x128 was not measured"):
        performance.run(Request(settings, *files, ["step_8x128"]))
    assert not files[0].exists()


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
