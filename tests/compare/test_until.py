"""``--until``: whose run is next, when no other follows, and that a comparison goes on alike."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from comparisons import comparison, model_and_rows
from paths import ROOT

from lorada.compare import until
from lorada.compare.jobs.job import JOB_FILE
from lorada.compare.make_plan import make_plan
from lorada.compare.run import read, until_of
from lorada.compare.trainings import comparison_jobs
from lorada.compare.until import Until, next_method
from lorada.decision.expected_loss import expected_losses
from lorada.decision.statistics import by_group
from lorada.runs.folder import locked

sys.path.append(str(ROOT / "studies" / "decision"))
from made_up_worlds import BASE, made_up
from until_errors import stopped


def runs(mean, spread, count, rows=400):
    """Runs of one method whose rows are right or wrong alike but for the runs' means."""
    means = mean + spread * np.linspace(-1, 1, count)
    return np.stack([np.where(np.arange(rows) < rows * m / 100, 100.0, 0.0) for m in means])


CASES = {
    "a leader that is far ahead": ({"a": runs(90, 0.5, 2), "b": runs(60, 0.5, 2)}, None),
    "the closest challenger": (
        {"a": runs(80, 1, 3), "b": runs(79, 1, 2), "c": runs(60, 1, 2)}, "b",
    ),
    "the leader, of fewer runs": ({"a": runs(80, 2, 2), "b": runs(79, 2, 4)}, "a"),
    "the leader, of a run less": ({"a": runs(80, 4.4, 5), "b": runs(79, 5.75, 6)}, "a"),
    "the erratic one": ({"a": runs(80, 1, 3), "b": runs(78, 14, 3)}, "b"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_next_run_is_of_the_method_that_decides(case):
    scores, expected = CASES[case]
    assert next_method(scores, 0.01, scores) == expected


def test_the_next_of_several_at_once_is_of_another_challenger_and_none_follows_without_seeds():
    scores = {"a": runs(80, 1, 5), "b": runs(79.5, 3, 2), "c": runs(79, 3, 2)}
    assert next_method(scores, 0.01, scores) == "b"
    assert next_method(scores, 0.01, scores, ["b"]) == "c"
    assert next_method(scores, 0.01, ["a"]) == "a"
    assert next_method(scores, 0.01, []) is None


def test_fewer_runs_lose_little_more_and_the_loss_that_is_claimed_is_kept():
    random, spent, lost, all_lost = np.random.default_rng(1), [], [], []
    for _ in range(40):
        made = made_up(BASE.__class__(**{**vars(BASE), "seeds": 5}), random)
        tables = stopped(made.scores, 0.5)
        spent.append(sum(map(len, tables)))
        for found, scores in ((lost, tables), (all_lost, made.scores)):
            found.append(made.truth.max() - made.truth[np.argmin(expected_losses(scores))])
        assert min(expected_losses(tables)) <= 0.5 or spent[-1] == 30
    assert np.mean(spent) < 0.75 * 30  # three runs each are 0.6
    assert np.mean(lost) < min(0.6, np.mean(all_lost) + 0.4)


def test_rows_of_a_group_count_as_one(monkeypatch, tmp_path):
    random, groups = np.random.default_rng(3), [str(row // 10) for row in range(300)]
    hard = random.normal(0, 1, 30)
    tables = [
        np.repeat(100.0 * (hard + random.normal(better, 1, (3, 30)) > 0), 10, axis=1)
        for better in (0.3, 0.2)
    ]
    by_group_alone, by_row = (
        min(expected_losses(each)) for each in ([by_group(t, groups) for t in tables], tables)
    )
    assert by_group_alone > 1.2 * by_row
    found = SimpleNamespace(
        candidates=[SimpleNamespace(runs=[1, 2, 3], scores=table) for table in tables],
        groups=groups,
    )
    monkeypatch.setattr(until, "read_comparison", lambda folder: found)
    job = SimpleNamespace(name="b 4")
    enough = (by_row + by_group_alone) / 2
    assert Until(tmp_path, enough, {"b 4": 1})([job], []) is job
    found.groups = None
    assert Until(tmp_path, enough, {"b 4": 1})([job], []) is None


SETTINGS = ["max_steps=2", "max_length=32", "max_new_tokens=2", "training.report_to=[]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return model_and_rows(tmp_path_factory.mktemp("until"))


@pytest.mark.more
def test_the_order_follows_from_what_is_stored(place, works, json_of, tmp_path):
    folder = tmp_path / "out"
    asked = [
        "compare", "--model", place / "llama", "--data", place / "train.jsonl", "--held-out",
        place / "test.jsonl", "--methods", "lora,ia3", "--seeds", "1,2,3,4", "--trials", 0,
        "--metric", "contains", "--output", folder, *SETTINGS,
    ]  # fmt: skip
    _, err = works(*asked, "--until", 100)
    seeds = {(p.parts[-4], p.parts[-2]) for p in folder.glob("runs/*/*/*/result.json")}
    assert seeds == {(name, f"seed{seed}") for name in ("lora", "ia3") for seed in (1, 2, 3)}
    assert "left to other commands" not in err
    summary = json.loads((folder / "report.json").read_text())
    assert summary["seeds"] == [1, 2, 3]
    assert all(line["letter"] for line in summary["lines"])
    assert any("p-values are descriptive" in sentence for sentence in summary["sentences"])
    assert not any("is not finished" in (one["reason"] or "") for one in summary["lines"])
    # Killed between two runs, it goes on with the same run.
    whole = comparison(
        place, methods=["lora", "ia3"], seeds=[1, 2, 3, 4], trials=0, until=0.0,
        recipe={"max_length": 32, "training": {"max_steps": 2}},
    )  # fmt: skip
    plan = make_plan(whole, *read(whole), print)
    jobs = comparison_jobs(whole, plan, folder)
    pick = until_of(whole, plan, folder)
    ready = [job for job in jobs if not job.done()]
    assert [job.name.split()[0] for job in ready] == ["lora", "ia3"]
    (first,) = folder.glob("runs/lora/*/seed3")
    shutil.rmtree(first)
    ready = [job for job in jobs if not job.done()]
    assert pick(ready, []).folder == first  # each has its first three runs before all others
    assert pick(ready[1:], [ready[0].name]) is None  # the choice waits for them
    # Where another command has that run, this one chooses from what is stored.
    with locked(first, JOB_FILE):
        _, err = works(*asked, "--until", 100, "--resume")
    assert "another process works on it" in err
    assert (first.with_name("seed4") / "result.json").is_file()
