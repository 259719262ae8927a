"""``benchmarks/gpu/run.py``: every part in its tiny form on a CPU, and the script as it is run."""

import json
import sys
from argparse import Namespace
from unittest.mock import Mock

import pytest
import torch
from gpu import answers, commands, gpu_tests, map_costs, methods, run, scoring, trainings, waits
from gpu.machine import Machine

from lorada import METHODS


@pytest.fixture
def machine(tmp_path):
    return Machine("cpu", True, tmp_path)


def rows_of(part, machine):
    """What a part measures here; a case that fails fails the test."""
    rows = dict(run.measured(machine, part, part.cases(machine)))
    assert not [row["reason"] for row in rows.values() if "reason" in row]
    assert all(len(line) == len(part.HEADER) for line in part.lines(rows))
    assert len(part.lines(rows)) >= len(rows)
    return json.loads(json.dumps(rows))  # as it comes from the file


@pytest.mark.more
def test_methods_are_compared_with_a_cpu_in_fp64_and_only_what_is_missing_is_measured(
    machine, tmp_path, monkeypatch
):
    file, page = tmp_path / "gpu.json", tmp_path / "gpu.md"
    options = ["--tiny", "--device", "cpu", "--parts", "methods", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["run.py", *options])
    run.main()
    results = json.loads(file.read_text())
    rows = results["parts"]["methods"]
    assert list(rows) == methods.cases(machine)
    for row in rows.values():
        assert row["fp64"] == {"loss": 0.0, "gradient": 0.0}  # it is a CPU
        assert row["bf16"] == row["cpu_bf16"]
        assert 1e-5 < row["bf16"]["loss"] < 0.05
        assert 1e-3 < row["bf16"]["gradient"] < 0.5
    assert all(f"| {name} | " in page.read_text() for name in rows)
    assert methods.cases(Machine("cuda", False, tmp_path)) == [*METHODS]

    first, *_ = rows
    rows[first] = {"reason": "no memory"}
    file.write_text(json.dumps(results))
    measure = Mock(return_value=[(first, {"reason": "too large"})])
    run.run(Namespace(parts=["methods"], overwrite=False, minutes=60), machine, file, page, measure)
    assert measure.call_args.args[:2] == ("methods", [first])
    assert f"Not measured: {first} (too large)." in page.read_text()


@pytest.mark.more
def test_the_tests_of_a_gpu_run_in_a_process_and_are_counted(machine):
    (row,) = rows_of(gpu_tests, machine).values()
    assert (row["passed"], row["failed"]) == (1, 0)


@pytest.mark.more
def test_the_map_is_timed_beside_none_and_the_paper_s_form(machine):
    step, token = rows_of(map_costs, machine).values()
    assert set(step["ms"]) == {"off", "on", "off_again", "paper"}
    assert step["kernels"]["on"] > step["kernels"]["off"] > 100
    assert token["kernels"]["on"] > token["kernels"]["off"]


@pytest.mark.more
def test_trainings_are_measured_beside_trl_and_peft(machine):
    pytest.importorskip("trl", reason="needs the train extra: pip install 'lorada[train]'")
    for name, row in rows_of(trainings, machine).items():
        assert len(row["tokens_per_second"]) == row["steps"] - 1 >= 2  # the first warms up
        assert row["peak_gib"] > 0
        assert (row["estimated_gib"] is None) == (name[:6] != "lorada")
        assert 5 < row["loss"] < 7  # random weights, 512 tokens


@pytest.mark.slow
def test_a_comparison_and_two_processes_are_run_as_a_user_runs_them(machine, monkeypatch):
    names = ["lorada compare, two methods", "lorada train, DDP"]
    monkeypatch.setattr(commands, "cases", lambda machine: names)
    compared, trained = rows_of(commands, machine).values()
    assert compared["left"] == "2 runs trained and scored"
    assert trained["left"].startswith("loss 5.")


def test_finished_runs_are_scored_and_write(machine):
    decoder, encoder = rows_of(scoring, machine).values()
    assert (len(decoder["rows"]), len(decoder["tokens"])) == (1, 1)
    assert (len(encoder["rows"]), encoder["tokens"]) == (1, [])


@pytest.mark.more
def test_answers_of_three_ways_are_the_same(machine):
    (row,) = rows_of(answers, machine).values()
    assert row["same"] == {"refilled": row["rows"], "continuous": row["rows"]}


@pytest.mark.more
def test_waits_are_counted_in_a_step_and_in_tokens(machine):
    assert [row["waits"] for row in rows_of(waits, machine).values()] == [{}, {}]


def test_without_a_gpu_a_line_says_what_there_is(monkeypatch, capsys):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    with pytest.raises(SystemExit, match=r"^2$"):
        run.main()
    said = capsys.readouterr().err
    assert f"no accelerator (torch {torch.__version__} is built for" in said
    assert "--tiny --device cpu tries the script" in said
