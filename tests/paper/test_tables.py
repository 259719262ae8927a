"""The paper's tables: recipes of rows, runs that go on where they were, pages beside the paper."""

import fcntl
import json
import pickle
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from folders import bert_folder, split_file
from programs import until
from table_rows import SMALL
from trained_runs import failing_for

from lorada.compare import learning_rate
from lorada.compare.jobs.job import JOB_FILE
from lorada.compare.jobs.pool import Workers
from lorada.paper import table_lines, table_spec
from lorada.paper.map_costs import CostTable
from lorada.paper.table_runs import Folders, list_jobs, run_all
from lorada.paper.table_runs import _is_scored as is_scored
from lorada.paper.table_spec import load_table
from lorada.runs.folder import LOCK_FILE, LOG_FILE
from lorada.runs.result import RowsMetrics, RunResult, read_predictions

TASKS = ("rte", "sst2")
ASKED = ("table", "5", "--scale", "local", "--tasks", "rte", "--seeds", "1")
LORA = (*ASKED, "--rows", "lora")
PAGE = "results/table5/local/table.md"
STORED = "results/table5/local/lora/rte/seed1.json"
RUN = "runs/table5-local/lora/rte/seed1"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A table 5 on a tiny BERT, with rows of two tasks in a local folder."""
    model = bert_folder(tmp_path / "bert")
    for task in TASKS:
        texts = {"rte": ("sentence1", "sentence2"), "sst2": ("sentence",)}[task]
        for split in ("train", "validation"):
            rows = [{**dict.fromkeys(texts, "ab" * (i % 4 + 1)), "label": i % 2} for i in range(12)]
            split_file(tmp_path / "data" / "glue" / task, split, rows)
    recipe = {
        "table": 5, "title": "GLUE", "tasks": list(TASKS), "train": "each", "seeds": [1, 2],
        "differs": ["A tiny model, rows that mean nothing."],
        "paper": {"model": "roberta-base", "settings": {"max_length": 512}},
        "local": {
            "model": str(model),
            "settings": {
                "max_length": 32,
                "training": {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": []},
            },
            "by_task": {"rte": {"training": {"learning_rate": 3.0e-4}}},
        },
        "rows": [
            {"key": "lora", "label": "LoRA (0.5%)", "method": "lora", "local": {"lora": {"r": 1}}},
            {"key": "full", "label": "Full", "method": "full"},
        ],
    }  # fmt: skip
    path = tmp_path / "table5.yaml"
    path.write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(table_spec, "tables", lambda: {"table5": path})
    monkeypatch.setattr(table_lines, "load_published", lambda number: SMALL)
    load_table.cache_clear()
    monkeypatch.setenv("LORADA_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    load_table.cache_clear()


@pytest.mark.first
def test_a_table_runs_its_rows_and_prints_them_beside_the_paper(place, works, json_of, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # so that the scale is local
    words = ("table", "5", "--rows", "lora", "--seeds", "1,2")
    out, _ = works(*words)
    assert "75.4 ± 0.2" in out
    folder = place / "results/table5/local"
    stored = sorted(str(path.relative_to(folder)) for path in folder.rglob("seed*.json"))
    assert stored == [f"lora/{task}/seed{seed}.json" for task in TASKS for seed in (1, 2)]
    for task in TASKS:  # each run folder has the answer to each of its 12 rows
        for path in (place / "runs").rglob(f"{task}/seed*/predictions.jsonl"):
            lines = read_predictions(path.parent)
            assert [line.row for line in lines] == list(range(1, 13))
            assert {line.rows for line in lines} == {task}
    assert len(list((place / "runs").rglob("predictions.jsonl"))) == len(stored)
    page = (folder / "table.md").read_text()
    assert "A tiny model, rows that mean nothing." in page
    assert "| LoRA (0.5%) | paper | 0.5% | 75.4 ± 0.2 | 94.2 ± 0.2 | 84.8 | – |" in page
    assert page.count("| ours |") == 1
    assert "seeds 1, 2" in page
    recipe = json.loads((folder / "lora/rte/seed1.json").read_text())["recipe"]
    assert recipe["data_dir"] is None
    assert recipe["training"]["learning_rate"] == 3.0e-4
    page = json_of(*words, "--resume")  # a program reads what a person does
    assert page["title"] == "Table 5: GLUE (local scale)"
    assert "scores: accuracy of rte, sst2." in page["notes"]
    assert [line["source"] for line in page["lines"]] == ["paper", "ours", "rows", "rows"]
    assert "the commonest answer alone" in [line["label"] for line in page["lines"]]


def scored_on(*names):
    """The result of a run that is scored on rows of these names."""
    metrics = {name: RowsMetrics(n=1, accuracy=0.0) for name in names}
    return RunResult(labels=[], form="label", history=[], metrics=metrics)


def test_a_run_is_done_when_each_of_its_tasks_has_a_score(place):
    (job,) = list_jobs(
        load_table("table5"), "local", rows=["lora"], tasks=["rte"], seeds=[1],
        folders=Folders(place, place),
    )  # fmt: skip
    both = replace(job, tasks=["rte", "sst2"])
    assert is_scored(both, scored_on("rte", "sst2", "rte (base)"))
    assert not is_scored(both, scored_on("rte", "rte (base)"))


def test_a_table_that_is_computed_is_printed_or_is_json(works, json_of, monkeypatch):
    found = CostTable("[x]", columns=["[/y]", "n"], rows=[["[z]", 7]], notes=["A [/]."])
    monkeypatch.setattr("lorada.paper.map_costs.cost_table", lambda number: found)
    out, _ = works("table", 2)
    assert {"[x]", "[/y]", "[z]", "7", "• A [/].", "next: lorada table 2 --json"} <= {
        word.strip() for line in out.splitlines() for word in line.replace("│", "┃").split("┃")
    }
    assert json_of("table", 2) == {
        "title": "[x]", "columns": ["[/y]", "n"], "rows": [["[z]", 7]], "notes": ["A [/]."]
    }  # fmt: skip


@pytest.mark.more
def test_a_table_that_was_cut_off_runs_and_scores_only_what_is_missing(place, works, mistake):
    works(*LORA)
    stored = place / STORED
    before = stored.stat().st_mtime_ns
    assert "is there already: use --resume" in mistake(*ASKED)
    _, err = works(*ASKED, "--resume")
    assert "full, rte, seed 1: started" in err
    assert "lora, rte, seed 1" not in err
    assert stored.stat().st_mtime_ns == before
    # A run that was not scored on all its tasks.
    kept = json.loads(stored.read_text())
    for path in (stored, place / RUN / "result.json"):
        path.write_text(json.dumps({**kept, "metrics": {"other (base)": {"n": 1}}}))
    log = place / RUN / LOG_FILE
    log.unlink()
    works(*LORA, "--resume")
    assert log.read_text() == "> scoring\n"
    assert json.loads(stored.read_text())["metrics"]["rte"] == kept["metrics"]["rte"]


def of_another_recipe(file):
    result = json.loads(file.read_text())
    result["recipe"]["max_length"] = 48
    file.write_text(json.dumps(result))


@pytest.mark.more
def test_a_result_of_another_recipe_is_not_taken_for_this_one(works, place, call):
    works(*LORA)
    (place / STORED).with_name("seed1-old.json").write_text("{}")
    of_another_recipe(place / STORED)
    of_another_recipe(place / RUN / "result.json")
    for file, where in ((STORED, "--resume"), (f"{RUN}/result.json", "--results=elsewhere")):
        code, _, err = call(*LORA, where)
        assert code == 2
        assert f"{file} was made with max_length=48, not 32" in err
    assert not (place / "elsewhere").exists()
    out, err = works(*ASKED, "--rows", "full")
    assert "Full" in out
    assert "left out: " in err
    assert "was made with max_length=48, not 32" in err
    assert "LoRA" not in (place / PAGE).read_text()
    works(*LORA, "--overwrite")
    assert json.loads((place / STORED).read_text())["recipe"]["max_length"] == 32


@pytest.mark.more
def test_a_page_keeps_the_rows_and_seeds_of_earlier_calls(place, works):
    words = ("table", "5", "--scale", "local", "--tasks", "rte")
    works(*words, "--rows", "lora", "--seeds", "1,1")
    out, _ = works(*words, "--rows", "full", "--seeds", "2", "--resume")
    assert "LoRA" not in out
    page = (place / PAGE).read_text()
    assert page.count("| ours |") == 2
    assert "seeds 1, 2" in page


@pytest.mark.more
@pytest.mark.parametrize("file", [LOCK_FILE, JOB_FILE])
def test_a_run_that_another_process_holds_is_left_to_it(file, place, call, works, mistake):
    (place / RUN).mkdir(parents=True)
    with (place / RUN / file).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as another process has
        assert call(*LORA)[:2] == (0, "")  # nothing to show, so there is no page
        assert not (place / "docs").exists()
        out, err = works(*ASKED)
        assert "1 of 2 jobs are held by other processes, which finish them" in err
        assert "--resume goes on with what is left then" in err.replace("\n", " ")
        assert "Full" in out
        assert not list(place.rglob("results/**/lora/**/seed1.json"))
    works(*LORA)
    with (place / RUN / file).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "is being trained by" in mistake(*LORA, "--overwrite")
    assert (place / RUN / "result.json").is_file()
    assert (place / STORED).is_file()


@pytest.mark.more
def test_tasks_learned_together_have_one_order_and_a_part_of_them_a_page_of_its_own(place, works):
    path = place / "table5.yaml"
    table = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**table, "tasks": ["rte", "qnli"], "train": "together"}))
    for split in ("train", "validation"):
        rows = [{"question": "ab", "sentence": "ab", "label": i % 2} for i in range(12)]
        split_file(place / "data" / "glue" / "qnli", split, rows)
    words = ("table", "5", "--scale", "local", "--seeds", "1", "--rows", "lora")
    for tasks in ("qnli,rte,rte", "rte"):
        works(*words, "--tasks", tasks)
    folder = place / "results/table5/local"
    assert sorted(path.name for path in (folder / "lora").iterdir()) == ["rte", "rte-qnli"]
    assert "| rte | qnli |" in (folder / "table.md").read_text()
    assert "qnli" not in (folder / "table-rte.md").read_text()


def test_a_dry_run_counts_and_writes_nothing(place, json_of):
    plan = json_of("table", "5", "--scale", "local", "--dry-run")
    assert len(plan) == 2 * 2 * 2
    assert all(0 < entry["trainable"] <= entry["total"] for entry in plan)
    assert not any(entry["done"] for entry in plan)
    assert not (place / "results").exists()
    assert not (place / "runs").exists()


def test_a_table_takes_settings_for_a_first_try_and_its_page_is_of_those_runs(
    place, works, mistake
):
    out, _ = works(*LORA, "max_steps=1", "train_rows=8")
    assert "next: lorada table 5 --scale local" in out
    result = json.loads((place / STORED).read_text())
    assert (result["steps"], result["data"]["rows"]) == (1, 8)
    assert result["guessing"] == {"rte": {"accuracy": 50.0}}
    assert "| LoRA (0.5%) | ours |" in (place / PAGE).read_text()
    # Without them it is another run, which is not mixed with the first.
    assert "was made with train_rows=8, not None" in mistake(*LORA, "--resume")
    assert mistake(*ASKED, "method=full").startswith("error: method=full: method is what a row of")
    assert "table 2 is computed, so max_steps=1 changes" in mistake("table", "2", "max_steps=1")


SPOILT = {"metrics": {"rte": 1}, "recipe": {"model": 3}, "unparsable": {"rte": "x"}}


@pytest.mark.first
def test_a_damaged_result_of_a_table_is_one_line(place, works, mistake):
    out, _ = works(*LORA)
    assert "next: lorada table 5 --scale local --tasks rte --seeds 1 --rows lora --dry-run" in out
    stored = place / STORED
    whole = json.loads(stored.read_text())
    for spoilt in ([], {}, *({**whole, key: value} for key, value in SPOILT.items())):
        stored.write_text(json.dumps(spoilt))
        said = mistake(*LORA, "--resume")
        assert said.startswith(f"error: {STORED} is not the result of a run: delete it")


@pytest.mark.more
def test_a_plan_suggests_the_runs_that_it_is_of(place, works):
    asked = ("--scale", "local", "--rows", "lora", "--seeds", "1", "--results", "my [x] results")

    def suggested():
        out, _ = works("table", "5", *asked, "--dry-run")
        (line,) = (line for line in out.splitlines() if line.startswith("next: "))
        return shlex.split(line.removeprefix("next: lorada "))

    words = suggested()
    assert words[:4] == ["table", "5", "--scale", "local"]
    works(*words)
    assert suggested() == [*words, "--resume"]
    stored = [path.name for path in (place / "my [x] results").rglob("*.json")]
    assert stored == ["seed1.json"] * len(TASKS)


@pytest.mark.more
def test_a_failed_run_does_not_end_the_table_and_leaves_no_old_numbers_if_overwritten(
    place, call, works, monkeypatch, jobs_here
):
    train = learning_rate.train
    full = failing_for("lora", MemoryError("a first line\nthe device is full"), train)
    monkeypatch.setattr(learning_rate, "train", full)
    code, out, err = call(*ASKED)
    assert code == 2
    assert err.splitlines()[-2:] == [
        "lora, rte, seed 1 failed: out of memory: take a smaller "
        "training.per_device_train_batch_size, max_length or rank, or activation_checkpointing=full"
        " (a first line the device is full)",
        "error: 1 of 2 jobs failed; --resume runs them again, and only them",
    ]
    assert "Full" in out
    assert (place / PAGE).read_text().count("| ours |") == 1
    monkeypatch.setattr(learning_rate, "train", train)
    _, err = works(*ASKED, "--resume")
    assert "1 of 2 jobs were done before" in err
    assert (place / PAGE).read_text().count("| ours |") == 2
    monkeypatch.setattr(learning_rate, "train", Mock(side_effect=ValueError("cut off")))
    assert call(*ASKED, "--overwrite")[0] == 2
    assert not list((place / "results").rglob("seed*.json"))
    assert not list((place / "runs").rglob("result.json"))


BESIDE = """
import pickle
from pathlib import Path
from lorada.compare.jobs.pool import Workers
from lorada.paper.table_runs import run_all

found = pickle.loads(Path("jobs").read_bytes())
run_all(found, say=print, resume=True, overwrite=False, pool=Workers())
"""


@pytest.mark.more
def test_two_processes_share_the_runs_of_a_table_and_train_none_twice(place):
    asked = {"tasks": ["rte"], "seeds": [1], "folders": Folders(Path("r"), Path("runs"))}
    found = list_jobs(load_table("table5"), "local", **asked)
    (place / "jobs").write_bytes(pickle.dumps(found))
    other = subprocess.Popen([sys.executable, "-c", BESIDE], stdout=subprocess.PIPE, text=True)
    until(lambda: [*place.rglob(JOB_FILE)] or other.poll() is not None, 240)
    said = list[str]()
    run_all(found, say=said.append, resume=True, overwrite=False, pool=Workers())
    out, _ = other.communicate(timeout=240)
    assert other.returncode == 0
    done = re.findall(r"\] ([\w, ]+): done in", "\n".join([out, *said]))
    assert len(done) == len(set(done)) == len(found) == 2
    assert all(job.stored.is_file() for job in found)
