"""``benchmarks/gpu/run.py``: every part in its tiny form on a CPU, what is kept, and the page."""

import json
import os
import sys
import warnings
from argparse import Namespace
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from fake_gpu import GPU, fake_gpu, move
from gpu import gpu_tests, map_costs, methods, page, run, trainings, waits
from gpu.machine import Machine

from lorada import METHODS


@pytest.fixture
def machine(tmp_path):
    return Machine("cpu", True, tmp_path)


def rows_of(part, machine, cases=None):
    """What a part measures here; a case that fails fails the test."""
    rows = dict(run.measured(machine, part, part.cases(machine) if cases is None else cases))
    assert not [row["reason"] for row in rows.values() if "reason" in row]
    assert all(len(line) == len(part.HEADER) for line in part.lines(rows))
    assert len(part.lines(rows)) >= len(rows)
    return json.loads(json.dumps(rows))  # as it comes from the file


# The parts.


def test_every_method_is_compared_with_a_cpu_in_fp64(machine):
    rows = rows_of(methods, machine)
    for row in rows.values():
        assert row["fp64"] == {"loss": 0.0, "gradient": 0.0}  # it is a CPU
        assert row["bf16"] == row["cpu_bf16"]
        assert 1e-5 < row["bf16"]["loss"] < 0.05
        assert 1e-3 < row["bf16"]["gradient"] < 0.5
    assert methods.cases(Machine("cuda", False, machine.folder)) == [*METHODS]


def test_a_device_that_computes_something_else_is_seen(machine, monkeypatch):
    plain = methods._loss_and_gradients
    sides = iter([1.0, 1.01, 1.0, 1.0])  # of the exact side, then of the device's fp64

    def changed(model, batch):
        loss, gradients = plain(model, batch)
        factor = next(sides)
        return loss * factor, {name: gradient * factor for name, gradient in gradients.items()}

    monkeypatch.setattr(methods, "_loss_and_gradients", changed)
    row = methods.measure(machine, "lora")
    assert row["fp64"]["loss"] == pytest.approx(0.01)
    assert row["fp64"]["gradient"] == pytest.approx(0.01)


def test_the_tests_of_a_gpu_run_in_a_process_and_are_counted(machine):
    (row,) = rows_of(gpu_tests, machine).values()
    assert (row["passed"], row["failed"]) == (1, 0)


def test_tests_are_counted_with_the_reasons_of_those_that_did_not_pass(tmp_path):
    (tmp_path / "report.xml").write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"/>'
        '<testcase name="c"><skipped message="no flash attention"/></testcase>'
        '<testcase name="d"><skipped message="no flash attention"/></testcase>'
        '<testcase name="e"><failure message="assert 1 == 2&#10;more"/></testcase>'
        '<testcase name="f"><error message="broken"/></testcase></testsuite></testsuites>'
    )
    row = gpu_tests.read_report(tmp_path / "report.xml")
    assert (row["passed"], row["failed"], row["skipped"]) == (2, 2, 2)
    assert row["reasons"] == {"no flash attention": 2, "e: assert 1 == 2": 1, "f: broken": 1}


def test_waits_are_counted_in_a_step_and_in_tokens(machine, monkeypatch):
    from lorada.attention import interface

    plain = torch.nn.functional.silu

    def waiting(*args, **kwargs):
        message = "called a synchronizing CUDA operation (Triggered internally at …)"
        warnings.warn_explicit(message, UserWarning, interface.__file__, 12)
        return plain(*args, **kwargs)

    rows = rows_of(waits, machine)
    assert [row["waits"] for row in rows.values()] == [{}, {}]
    # As torch reports them on a GPU.
    monkeypatch.setattr(torch.nn.functional, "silu", waiting)
    from transformers.activations import ACT2FN  # noqa: F401 - its SiLU calls the function

    found = rows_of(waits, machine, [waits.TOKENS])[waits.TOKENS]["waits"]
    place = "lorada/attention/interface.py:12"
    assert list(found) == [place]
    assert found[place] == 2 * waits.NEW  # two layers, a forward pass for each token


def test_the_map_is_timed_beside_none_and_the_paper_s_form(machine):
    rows = rows_of(map_costs, machine)
    step, token = (rows[name] for name in map_costs.cases(machine))
    assert set(step["ms"]) == {"off", "on", "off_again", "paper"}
    assert step["kernels"]["on"] > step["kernels"]["off"] > 100
    assert token["kernels"]["on"] > token["kernels"]["off"]
    assert 0 < step["attention_ms"] < step["device_ms"]["off"]


def _other_weights(module):
    if isinstance(module, torch.nn.Linear):
        module.weight.data.mul_(1.5)


def test_a_map_that_differs_from_the_paper_s_form_is_not_timed(machine, monkeypatch):
    plain = map_costs.use_paper_attention
    monkeypatch.setattr(
        map_costs, "use_paper_attention", lambda base: plain(base).apply(_other_weights)
    )
    ((_, row),) = run.measured(machine, map_costs, ["step 8 × 512"])
    assert "DisagreementError" in row["reason"]
    assert "differ by" in row["reason"]


def test_what_is_timed_runs_on_a_fake_gpu_and_never_waits_for_it(machine):
    step, token = map_costs.cases(machine)
    models = map_costs._models(machine, step)
    on_gpu = Machine(str(GPU), True, machine.folder)
    with fake_gpu({}) as gpu:
        for name, model in models.items():
            move(model)
            map_costs._step(on_gpu, model, step)(0)
            if name != "paper":
                map_costs._tokens(on_gpu, model, token)(0)
    assert not gpu.reads


def test_trainings_are_measured_beside_trl_and_peft(machine):
    pytest.importorskip("trl", reason="needs the train extra: pip install 'lorada[train]'")
    rows = rows_of(trainings, machine)
    assert {side for side, _, _ in map(trainings.CASES.get, rows)} == {"lora+lmam", "trl", "peft"}
    for row in rows.values():
        assert row["steps"] >= 3
        assert len(row["tokens_per_second"]) == row["steps"] - 1  # the first warms up
        assert row["peak_gib"] > 0
        assert 5 < row["loss"] < 7  # random weights, 512 tokens


def test_answers_of_three_ways_are_the_same(machine):
    from gpu import answers

    (row,) = rows_of(answers, machine).values()
    assert set(row["seconds"]) == set(answers.WAYS)
    assert row["same"] == {"refilled": row["rows"], "continuous": row["rows"]}


# What is kept.


def test_a_run_goes_on_with_what_is_missing_or_failed_which_its_page_names(
    machine, tmp_path, monkeypatch
):
    part = {
        "ABOUT": "", "HEADER": ("case", "n"), "cases": lambda machine: ["a", "b"],
        "lines": lambda rows: [(case, str(row["n"])) for case, row in rows.items()],
    }  # fmt: skip
    parts = {name: SimpleNamespace(TITLE=name, **part) for name in ("methods", "tests")}
    monkeypatch.setattr(run, "PARTS", parts)
    given = Namespace(parts=[*parts], overwrite=False, minutes=60)
    file, written = tmp_path / "results.json", tmp_path / "gpu.md"
    whole = {"n": 3, "took": 1.0}

    def begun(first_of_tests=whole):
        """What a run began to measure; one case may fail or be interrupted."""
        found = []

        def measure(part, names, until):
            for name in names:
                found.append(f"{part} {name}")
                row = first_of_tests if found[-1] == "tests a" else whole
                if row is None:
                    raise KeyboardInterrupt
                yield name, row

        with suppress(KeyboardInterrupt):
            run.run(given, machine, file, written, measure)
        return found

    assert begun(None) == ["methods a", "methods b", "tests a"]
    assert begun({"reason": "no"}) == ["tests a", "tests b"]
    text = written.read_text()
    assert "Not measured: a (no)." in text
    assert "| b | 3 |" in text
    assert begun() == ["tests a"]
    results = json.loads(file.read_text())
    assert all(row["n"] == 3 for part in results["parts"].values() for row in part.values())
    text = written.read_text()
    assert "Not measured" not in text
    tests = text.partition("## 2.")[2]
    assert tests.index("| a | 3 |") < tests.index("| b | 3 |")
    assert begun() == []


# The processes.

CHILD = """
import json, os, sys, time
cases = json.loads(sys.argv[sys.argv.index("--cases") + 1])
for case in cases:
    if case == "dies":
        print("Error: the device is lost", file=sys.stderr, flush=True)
        os._exit(3)
    if case == "hangs":
        time.sleep(600)
    print("a line of a library")
    print("@@measured@@ " + json.dumps([case, {"n": 1}]), flush=True)
"""


def test_a_process_that_dies_or_hangs_costs_its_case_alone(machine, tmp_path, monkeypatch):
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setattr(run, "HERE", tmp_path / "child.py")
    monkeypatch.setattr(run, "PATIENCE", 0.1)
    monkeypatch.setattr(run, "PARTS", {"part": SimpleNamespace(ALONE=False, SECONDS=2)})
    names, until = ["a", "dies", "hangs", "b"], run.time.monotonic() + 60
    assert dict(run.in_processes(Namespace(), machine, "part", names, until)) == {
        "a": {"n": 1}, "b": {"n": 1}, "hangs": {"reason": "took more than 2 s"},
        "dies": {"reason": "its process ended with 3: Error: the device is lost"},
    }  # fmt: skip


def test_without_a_gpu_a_line_says_what_there_is(monkeypatch, capsys, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho Tesla T4, 535.54\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    with pytest.raises(SystemExit, match=r"^2$"):
        run.main()
    assert (
        f"torch {torch.__version__} is built for CUDA 13.0; cards and driver by nvidia-smi: "
        "Tesla T4, 535.54): --tiny --device cpu tries the script"
    ) in capsys.readouterr().err


# The page.


def test_the_page_is_what_the_results_make():
    results = json.loads(run.RESULTS.read_text()) if run.RESULTS.is_file() else None
    assert page.PAGE.read_text(encoding="utf-8") == page.text(results, run.PARTS)
