"""``lorada compare``: mistakes in one line, before anything is written; the dry run; failures."""

import errno
import json
import shutil
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
from comparisons import model_and_rows
from folders import ROWS, rows_file
from trained_runs import failing_for

from lorada.compare import learning_rate, run
from lorada.compare.jobs.job import JOB_FILE
from lorada.runs.folder import locked
from lorada.training.train import Trained

SETTINGS = ["max_steps=2", "max_length=32", "max_new_tokens=2", "training.report_to=[]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = model_and_rows(tmp_path_factory.mktemp("compare"))
    rows_file(place / "few.jsonl", ROWS[:8])
    spaced = [{"prompt": f"  {row['prompt']}\n", "response": row["response"]} for row in ROWS[:3]]
    rows_file(place / "leaked.jsonl", [*spaced, *ROWS[28:]])
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    chat = {"messages": [{"role": role, "content": content} for role, content in turns]}
    rows_file(place / "chats.jsonl", [chat])
    (place / "broken.jsonl").write_text('{"prompt": "a", "answ')
    rows_file(place / "strange.jsonl", [{"from": "a", "to": "b"}])
    return place


def words(place, to, *more, **changes):
    given = {
        "model": place / "llama", "data": place / "train.jsonl",
        "held_out": place / "test.jsonl", "methods": "lora,lmam", "seeds": "1,2", "trials": 2,
        "output": to, **changes,
    }  # fmt: skip
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in given.items()]
    options = [word for pair in pairs if pair[1] is not None for word in pair]
    return ["compare", *options, *SETTINGS, *more]


# What is typed beside a whole command → what is said of it.
MISTAKES = {
    "--methods lora,lmom": "unknown method 'lmom'; did you mean lmam",
    "--methods ia3+": "method 'ia3+' has a + without a method beside it",
    "--methods bitfit": (
        "no method can be run: bitfit: bitfit trains biases, and LlamaForCausalLM has none"
    ),
    "--rates low": "low must be numbers, such as 1e-4,1e-3",
    "--rates 1e-3,1": "--rates 1.0: input should be less than or equal to 0.1",
    "--trials -1": "--trials -1: input should be greater than or equal to 0",
    "--budget 1%,1%": "--budget names 1% twice",
    "--budget much": "budget 'much' is neither a share",
    "--held-out leaked.jsonl": "are training rows too, so scores would reward",
    "--data none.jsonl": "none.jsonl: pass --data FILE",
    "--data few.jsonl": "has 8 rows, and none is left to learn from after 8",
    "--task rte": "leave out",
    "--keep none.jsonl": "no data file at none.jsonl, which is --keep: pass --keep FILE",
    "--keep few.jsonl": "few.jsonl are training rows too, so they are learned and not kept",
    "--keep chats.jsonl": "a chat to score must end with a turn of the assistant",
    "--keep test.jsonl,broken.jsonl": "broken.jsonl",
    "--keep strange.jsonl": "strange.jsonl",
    "--until -1": "--until -1.0: input should be greater than or equal to 0",
    "learning_rate=1e-3": "learning_rate=0.001 is not for a comparison: it is searched",
    "method=lora": "method='lora' is not for a comparison: pass --methods",
    "dev_rows=4": "dev_rows=4 is not for a comparison: the comparison sets rows aside",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(mistake, place, tmp_path, monkeypatch, typed):
    monkeypatch.chdir(place)
    line = mistake(*words(place, tmp_path / "new" / "out", *typed.split()))
    assert MISTAKES[typed] in line
    assert list(tmp_path.iterdir()) == []


def test_held_out_rows_and_a_folder_are_needed(mistake, place, tmp_path):
    line = mistake(*words(place, tmp_path / "out", held_out=None))
    assert "scores on held-out rows: pass --held-out FILE" in line
    assert "no folder for the comparison: pass --output FOLDER" in mistake(*words(place, None))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_is_refused(mistake, place, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for more in ([], ["--overwrite"]):
        line = mistake(*words(place, tmp_path, *more))
        assert "is not empty (notes.txt) and holds no comparison" in line
    line = mistake(*words(place, tmp_path / "notes.txt"))
    assert "is a file: choose another --output" in line
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_there_must_be_a_comparison_to_resume(mistake, tmp_path):
    line = mistake("compare", tmp_path, "--resume")
    assert "holds no comparison: it has no comparison.yaml" in line
    assert "a folder is for --resume" in mistake("compare", tmp_path, "--trials", "0")
    (tmp_path / "comparison.yaml").write_text("methods: 3\nrecipe: {}\n")
    line = mistake("compare", tmp_path, "--resume")
    assert "comparison.yaml is damaged: put it back, or start again with --overwrite" in line
    assert "(methods: input should be a valid list)" in line


@pytest.fixture
def comparison(works, place):
    """The folder of a small comparison that is finished, made in the process of the test."""
    folder = place / "finished"
    if not folder.is_dir():
        works(*words(place, folder, "--allow-overlap", methods="lora", seeds="1", trials=0,
                     held_out=place / "leaked.jsonl"))  # fmt: skip
    return folder


@pytest.mark.more
def test_training_rows_can_be_held_out_if_allowed_and_without_trials_the_default_rate_is_taken(
    comparison,
):
    plan = json.loads((comparison / "plan.json").read_text())
    assert plan["overlap"] == 3
    (run,) = comparison.glob("runs/lora/*/seed1")
    (candidate,) = plan["candidates"]
    result = json.loads((run / "result.json").read_text())
    assert result["recipe"]["training"]["learning_rate"] == candidate["default_rate"]
    assert not (comparison / "trials").exists()


def test_a_comparison_is_not_begun_again_over_another(mistake, place, comparison):
    line = mistake(*words(place, comparison))
    assert "already holds a comparison: use --resume, --overwrite or another --output" in line
    line = mistake("compare", comparison, "--resume", "--overwrite")
    assert "--resume and --overwrite exclude each other" in line


def test_a_comparison_in_which_a_job_runs_is_not_overwritten(mistake, comparison, place):
    (run,) = comparison.glob("runs/lora/*/seed1")
    with locked(run, JOB_FILE):
        line = mistake(*words(place, comparison, "--overwrite", methods="lora", seeds="1"))
    assert f"{run} is" in line
    assert (run / "result.json").is_file()


CONTRADICTIONS = {
    "--methods lora,lmam": "--methods=lora, not lora,lmam",
    "--trials 3": "--trials=0, not 3",
    "--budget 1%": "--budget=, not 1%",
    "--with-text": "--with-text=None, not True",
    "--keep x.jsonl": "--keep=None, not x.jsonl",
    "max_length=16": "max_length=32, not 16",
    "max_steps=3": "training.max_steps=2, not 3",
}


@pytest.mark.parametrize("typed", CONTRADICTIONS)
def test_options_that_contradict_the_saved_ones_are_refused_by_name(mistake, comparison, typed):
    line = mistake("compare", comparison, "--resume", *typed.split())
    assert f"the comparison to resume had {CONTRADICTIONS[typed]}: leave it as it was" in line


def test_a_comparison_from_elsewhere_runs_no_function_of_a_file(mistake, comparison, tmp_path):
    copy, file = shutil.copytree(comparison, tmp_path / "copy"), tmp_path / "theirs.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(*a): return 1\n")
    spec = copy / "comparison.yaml"
    spec.write_text(spec.read_text().replace("recipe:\n", f"recipe:\n  metric: {file}:f\n"))
    line = mistake("compare", copy, "--resume")
    assert f"copy is scored by {file}:f, and code of a file runs only if you name it" in line
    assert not (tmp_path / "ran").exists()


def test_the_same_options_again_are_no_contradiction(works, place, comparison):
    asked = words(place, None, "--resume", "--allow-overlap", methods="lora", seeds="1", trials=0,
                  held_out=place / "leaked.jsonl")  # fmt: skip
    _, err = works("compare", comparison, *asked[1:])
    assert "3 of 3 jobs were done before" in err


@pytest.mark.more
def test_other_rows_are_noticed_when_a_comparison_goes_on(mistake, works, place, tmp_path):
    rows_file(tmp_path / "rows.jsonl", ROWS[:28])
    output = tmp_path / "out"
    asked = words(place, output, data=tmp_path / "rows.jsonl", methods="lora", trials=0, seeds="1")
    works(*asked)
    rows_file(tmp_path / "rows.jsonl", ROWS[:27])
    line = mistake("compare", output, "--resume")
    assert "the rows are not those that" in line
    works(*asked, "--overwrite")
    assert json.loads((output / "plan.json").read_text())["train"]["rows"] == 27


@pytest.mark.first
def test_a_job_that_fails_or_cannot_be_run_is_told_and_the_rest_goes_on(
    call, works, place, tmp_path, monkeypatch, jobs_here
):
    train = learning_rate.train
    broken = failing_for("lmam", ValueError("a line before\nno such layer"), train)
    monkeypatch.setattr(learning_rate, "train", broken)
    output = tmp_path / "out"
    code, _, err = call(*words(place, output, methods="lmam,lora,bitfit", seeds="1", trials=0))
    assert code == 2
    *_, bitfit = json.loads((output / "plan.json").read_text())["candidates"]
    assert bitfit["trainable"] is None
    assert "has none" in bitfit["reason"]
    failures = json.loads((output / "failures.json").read_text())
    ((name, reason),) = failures.items()
    assert name.startswith("runs/lmam/")
    assert name.endswith("/seed1")
    assert reason == "no such layer"
    assert f"failed: {name}: no such layer" in err
    assert list(output.glob("runs/lora/*/seed1/result.json"))
    assert (output / "report.json").is_file()

    monkeypatch.setattr(learning_rate, "train", train)
    works("compare", output, "--resume")
    assert json.loads((output / "failures.json").read_text()) == {}
    assert {path.name for path in (output / "runs").iterdir()} == {"lmam", "lora"}


STOPPED = Trained(Path("-"), None, steps=1, interrupted=True)


@pytest.mark.parametrize("ends", [{"side_effect": KeyboardInterrupt}, {"return_value": STOPPED}])
def test_ctrl_c_starts_no_further_job_and_says_how_to_go_on(
    call, place, tmp_path, monkeypatch, jobs_here, ends
):
    train = Mock(**ends)
    monkeypatch.setattr(learning_rate, "train", train)
    output = tmp_path / "out"
    code, _, err = call(*words(place, output, methods="lora,lmam", seeds="1", trials=0))
    assert (code, train.call_count) == (130, 1)
    assert f"next: lorada compare {output} --resume" in err.replace("\n", "")


def test_a_disk_that_is_full_at_the_end_is_said_with_what_helps(
    place, mistake, tmp_path, monkeypatch, jobs_here
):
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(run, "run_queue", full)
    line = mistake(*words(place, tmp_path / "out", methods="lora", seeds="1", trials=0))
    assert f"could not save {tmp_path / 'out'}: No space left on device. What was saved" in line
    assert line.rstrip().endswith("run the command again with --resume")


@pytest.mark.more
def test_with_resume_a_command_begins_a_comparison_or_joins_the_same(
    works, mistake, place, tmp_path
):
    output = tmp_path / "out"
    asked = words(place, output, "--resume", methods="lora", seeds="1", trials=0)
    works(*asked)
    result = next(output.glob("runs/lora/*/seed1/result.json"))
    before = result.stat().st_mtime_ns
    _, err = works(*asked)
    assert "3 of 3 jobs were done before" in err
    assert result.stat().st_mtime_ns == before
    line = mistake(*words(place, output, "--resume", methods="ia3", seeds="1", trials=0))
    assert "the comparison to resume had --methods=lora, not ia3" in line


def test_only_a_command_that_says_all_begins_by_resuming(mistake, place, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    line = mistake(*words(place, tmp_path / "other", "--resume"))
    assert "is not empty (notes.txt) and holds no comparison" in line
    for asked in (words(place, tmp_path / "new", "--resume", methods=None),
                  ["compare", tmp_path / "new", "--resume", "--methods", "lora"]):  # fmt: skip
        assert "new holds no comparison: it has no comparison.yaml" in mistake(*asked)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.more
@pytest.mark.parametrize("others", ["lora", "ia3"])
def test_of_comparisons_that_begin_at_once_only_the_same_is_joined(
    call, works, place, tmp_path, monkeypatch, others
):
    output, make_plan = tmp_path / "out", run.make_plan

    def slower(*given):
        plan = make_plan(*given)
        monkeypatch.setattr(run, "make_plan", make_plan)
        works(*words(place, output, "--resume", methods=others, seeds="1", trials=0))
        return plan

    monkeypatch.setattr(run, "make_plan", slower)
    code, _, err = call(*words(place, output, "--resume", methods="lora", seeds="1", trials=0))
    if others == "lora":
        assert code == 0
        assert "3 of 3 jobs were done before" in err
    else:
        assert code == 2
        assert "another command has begun another comparison in" in err
    assert [path.name for path in (output / "runs").iterdir()] == [others]


@pytest.mark.more
def test_what_another_command_works_on_is_left_to_it_and_so_is_what_it_said_of_it(
    call, works, place, tmp_path, jobs_here
):
    output = tmp_path / "out"
    asked = words(place, output, "--resume", methods="lora,ia3", seeds="1", trials=2)
    with patch.object(learning_rate, "train", side_effect=ValueError("out of memory")):
        code, _, err = call(*asked)
    assert code == 2
    failures = json.loads((output / "failures.json").read_text())
    assert list(failures.values()) == ["out of memory"] * 2  # of the searches
    report = json.loads((output / "report.json").read_text())
    assert all(f"seed1 failed: {why}" in line["reason"]
               for line, why in zip(report["lines"], failures.values(), strict=True))  # fmt: skip
    (output / "report.json").unlink()
    (search,) = output.glob("trials/ia3/*")
    with locked(search, JOB_FILE):  # it is tried again elsewhere
        _, err = works(*asked)
    said = err.replace("\n", "")
    assert "left to other commands, the last of which writes the report: 2 jobs" in said
    assert f"next: lorada compare {output} --resume" in said
    assert "failed:" not in err
    assert not (output / "report.json").exists()
    key = str(search.relative_to(output))
    assert json.loads((output / "failures.json").read_text()) == {key: failures[key]}
    works("compare", output, "--resume")
    assert (output / "report.json").is_file()
    assert json.loads((output / "failures.json").read_text()) == {}
    assert len(list(output.glob("runs/*/*/seed1/result.json"))) == 2


@pytest.mark.more
def test_the_scores_without_training_are_left_to_the_command_that_computes_them(
    works, place, tmp_path
):
    output = tmp_path / "out"
    asked = words(place, output, "--resume", methods="lora", seeds="1", trials=0)
    works(*asked)
    (run,) = output.glob("runs/lora/*/seed1")
    for path in (output / "report.json", output / "baselines.json", run / "as_it_is.json"):
        path.unlink()
    with locked(run, JOB_FILE):
        _, err = works(*asked)
    assert "the last of which writes the report: 1 job" in err.replace("\n", " ")
    assert not (output / "baselines.json").exists()
    works(*asked)
    assert (output / "report.json").is_file()
    assert "row_scores" in json.loads((output / "baselines.json").read_text())["as_it_is"]


@pytest.mark.more
def test_the_dry_run_measures_every_candidate_and_writes_nothing(json_of, place, tmp_path):
    asked = words(place, tmp_path / "out", methods="lora,lmam,bitfit", budget="2000,3000")
    found = json_of(*asked, "--dry-run", "--workers", 2)
    assert list(tmp_path.iterdir()) == []
    runnable = [row for row in found["candidates"] if row["reason"] is None]
    assert {row["method"] for row in runnable} == {"lora", "lmam"}
    for row in runnable:
        assert row["runs"] == 2 + 3 + 2  # with three trials beyond an end, if it comes to that
        assert row["seconds_per_step"] > 0
        assert row["peak_memory_bytes"] > 0
        assert row["seconds"] == pytest.approx(7 * 2 * row["seconds_per_step"])
    assert found["jobs"] == 7 * len(runnable)
    assert found["kept_rows"] == 507
    stages = found["stages"]
    assert stages.pop("curve")["trainings"] == 0  # without --curve
    assert [(stage["trainings"], stage["probably"]) for stage in stages.values()] == [
        (5 * len(runnable), 2 * len(runnable)), (2 * len(runnable),) * 2,
    ]  # fmt: skip
    trained = sum(stage["seconds"] for stage in stages.values())
    assert trained == pytest.approx(sum(row["seconds"] for row in runnable))
    longest = max(row["seconds"] for row in runnable)
    assert found["seconds"] == pytest.approx((trained + longest) / 2)  # two at once, at most
    assert 0 < found["probably_seconds"] < found["seconds"]
    assert any(row["method"] == "bitfit" and row["reason"] for row in found["candidates"])


def test_the_dry_run_refuses_what_no_run_can_be_made_of(mistake, place, tmp_path):
    asked = words(place, tmp_path / "out", "--dry-run", "optim=adamv", methods="lora")
    assert "adamv is not a valid OptimizerNames" in mistake(*asked)


def test_the_dry_run_as_a_table(works, place, tmp_path):
    asked = words(place, tmp_path / "out", "--dry-run", methods="lora,bitfit", trials=0)
    out, _ = works(*asked)
    assert "biases" in out
    said = " ".join(out.split())
    assert "Trainings for the seeds: 2 (" in said
    assert "search" not in said
    assert "2 steps each, 1 at once: probably" in said
    assert "the loading of the model, and the scoring come on top." in said
    assert "each run is scored on 507 rows of builtin:general.jsonl" in said
