"""``lorada compare`` from one command to the report, on tiny models; going on after a kill."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from comparisons import model_and_rows
from folders import ROWS, bert_folder, rows_file, split_file
from programs import printed, until
from queue_jobs import is_gone

from lorada.compare.jobs.job import JOB_FILE
from lorada.compare.rate_rule import FACTOR
from lorada.compare.read_results import read_comparison
from lorada.compare.retention import read_kept_tables
from lorada.compare.scale_findings import find_scales
from lorada.compare.scaled import scale_jobs
from lorada.compare.stored_plan import saved_plan
from lorada.runs.folder import LOG_FILE
from lorada.runs.result import read_predictions, read_result

STEPS = 4
SETTINGS = [f"max_steps={STEPS}", "max_length=32", "max_new_tokens=2", "training.report_to=[]"]
LABELS = [{"text": "ab" * (i % 9 + 1) + "c" * i, "label": "nymn"[i % 4]} for i in range(32)]
PROMPTS = ["lora", "lmam"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = model_and_rows(tmp_path_factory.mktemp("compare"))
    bert_folder(place / "bert")
    rows_file(place / "train_labels.jsonl", LABELS[:24])
    rows_file(place / "test_labels.jsonl", LABELS[24:])
    return place


def words(place, output, *more, model="llama", rows="", methods=PROMPTS, seeds="1,2", trials=2):
    return list(map(str, [
        "compare", "--model", place / model, "--data", place / f"train{rows}.jsonl",
        "--held-out", place / f"test{rows}.jsonl", "--methods", ",".join(methods),
        "--seeds", seeds, "--trials", trials, "--output", output, *SETTINGS, *more,
    ]))  # fmt: skip


@pytest.fixture(scope="module")
def whole(lab, place):
    """A comparison of two methods that nothing has interrupted, and what its command replied."""
    folder = place / "whole"
    reply = lab.command(words(place, folder), folder)
    assert reply["code"] == 0, reply["said"]
    return folder, reply


def read(path):
    return json.loads(path.read_text())


def searches(folder):
    """What the searches have found, by method."""
    return {path.parts[-3]: read(path) for path in folder.glob("trials/*/*/search.json")}


def final_losses(folder):
    """The logged losses and the scores of every final run."""
    found = {}
    for path in folder.glob("runs/**/result.json"):
        result = read(path)
        metrics = {k: v for k, v in result["metrics"].items() if not k.endswith("(base)")}
        name = str(path.parent.relative_to(folder))
        found[name] = result["history"], metrics, read(path.parent / "kept.json")
    return found


@pytest.mark.more
def test_every_method_and_seed_is_trained_and_scored_on_every_held_out_row(whole, place):
    folder, _ = whole
    assert len(final_losses(folder)) == 4
    for candidate in read(folder / "plan.json")["candidates"]:
        for seed in (1, 2):
            run = folder / "runs" / candidate["method"] / str(candidate["trainable"])
            result = read_result(run / f"seed{seed}")
            assert (result.seed, result.steps) == (seed, STEPS)
            assert result.recipe.training["train_sampling_strategy"] == "group_by_length"
            assert result.parameters.trainable == candidate["trainable"]
            assert result.metrics[str(place / "test.jsonl")].n == 8
            lines = read_predictions(run / f"seed{seed}")
            mine = [line for line in lines if line.rows == str(place / "test.jsonl")]
            assert [line.row for line in mine] == list(range(1, 9))
            assert mine[0].text is None
            assert (run / f"seed{seed}" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_search_tries_the_default_first_and_never_reads_a_held_out_row(whole):
    folder, _ = whole
    plan = read(folder / "plan.json")
    for candidate in plan["candidates"]:
        place = folder / "trials" / candidate["method"] / str(candidate["trainable"])
        search = read(place / "search.json")
        rates = [trial["rate"] for trial in search["trials"]]
        assert rates[:2] == [candidate["default_rate"], candidate["default_rate"] * FACTOR]
        assert len(rates) == 5 or min(rates) < search["rate"] < max(rates)
        measured = read_result(place / "trial-0").history
        as_it_is = next(entry["eval_loss"] for entry in measured if entry["step"] == 0)
        assert {trial["guessing"] for trial in search["trials"]} == {as_it_is}
        for trial in (0, 1):
            result = read_result(place / f"trial-{trial}")
            assert (result.seed, result.steps) == (1, STEPS)
            assert result.recipe.eval_data is None
            assert result.recipe.dev_rows == plan["dev_rows"] == 8
            measured = [entry["step"] for entry in result.history if "eval_loss" in entry]
            assert measured == ([0, STEPS] if trial == 0 else [STEPS])
            assert not list(place.glob("trial-*/adapter"))
            assert not list(place.glob("trial-*/checkpoint-*"))


def test_the_final_runs_take_the_rate_that_the_search_has_found(whole):
    folder, _ = whole
    lines = {line["label"]: line for line in read(folder / "report.json")["lines"]}
    for method, search in searches(folder).items():
        for path in folder.glob(f"runs/{method}/*/seed*/result.json"):
            recipe = read(path)["recipe"]
            assert recipe["training"]["learning_rate"] == search["rate"]
            assert "map_learning_rate" not in recipe["parts"].get("lmam", {})
        assert (lines[method]["rates"], lines[method]["map_rates"]) == ([search["rate"]], [])


def test_stored_rows_and_scores_without_training_have_what_another_metric_needs(whole):
    folder, _ = whole
    assert read(folder / "plan.json")["metric"]["name"] == "exact_match"
    for run in final_losses(folder):
        for line in read_predictions(folder / run):
            assert line.loss > 0
            assert line.metrics.keys() == {"exact_match", "contains"}
    found = read(folder / "baselines.json")
    as_it_is, common = (found[name]["row_scores"] for name in ("as_it_is", "commonest"))
    assert as_it_is.keys() == {"loss", "exact_match", "contains"}
    assert common.keys() == {"exact_match", "contains"}
    assert len(as_it_is["exact_match"]) == 8
    answers = [row["response"] for row in ROWS[:27]]
    assert found["commonest"]["answer"] == max(answers, key=answers.count)
    right = [row["response"] == found["commonest"]["answer"] for row in ROWS[28:]]
    assert common["exact_match"] == [100.0 * one for one in right]


def test_the_verdict_the_reports_and_the_next_command_are_printed(whole):
    folder, reply = whole
    said = " ".join(reply["said"].split())
    summary = read(folder / "report.json")
    assert summary["verdict"] in said
    assert all(sentence in said for sentence in summary["sentences"])
    assert re.search(r"\[6/8\] lmam \d+ seed 2: done", said)  # two searches, four runs, two more
    for kind in ("html", "json"):
        assert (folder / f"report.{kind}").is_file()
        assert f"{folder}/report.{kind}" in said
    see = f"python -m webbrowser {folder}/report.html"
    following = next(iter(summary["commands"].values()), see)
    assert f"next: {following}" in said


def test_base_and_runs_are_scored_on_the_rows_to_keep_and_only_what_is_missing_is_scored_again(
    lab, whole, tmp_path
):
    folder = shutil.copytree(whole[0], tmp_path / "copy")
    files = [folder / "kept" / "kept.json", *folder.glob("runs/*/*/seed*/kept.json")]
    losses = [read(file)["losses"]["builtin:general.jsonl"] for file in files]
    assert [len(rows) for rows in losses] == [507] * 5
    missing = files[0], files[1]
    before = {file: file.stat().st_mtime_ns for file in files}
    for file in missing:
        file.unlink()
    reply = lab.command(["compare", str(folder), "--resume"], folder)
    assert (reply["code"], reply["steps"]) == (0, 0), reply["said"]
    assert [read(file)["losses"]["builtin:general.jsonl"] for file in files] == losses
    assert {f for f in files if f.stat().st_mtime_ns != before[f]} == set(missing)
    methods = read(folder / "report.json")["retention"]["methods"]
    means = {line["method"]: line["lost"]["value"] for line in methods}
    base = np.array(losses[0])
    for method, mean in means.items():
        of_method = [rows for file, rows in zip(files, losses, strict=True) if method in file.parts]
        assert mean == pytest.approx((np.array(of_method) - base).mean(), rel=1e-6)


@pytest.mark.more
def test_rows_of_the_users_own_are_kept_and_must_stay_as_they_are(lab, place, tmp_path):
    other = rows_file(tmp_path / "other.jsonl", [{"text": "ab c"}, {"text": "c b a b"}])
    asked = words(place, tmp_path / "c", "--keep", other, methods=["lora"], seeds="1", trials=0)
    reply = lab.command(asked, tmp_path / "c")
    assert reply["code"] == 0, reply["said"]
    assert list(read(tmp_path / "c" / "kept" / "kept.json")["losses"]) == [str(other)]
    assert read(tmp_path / "c" / "report.json")["retention"]["files"] == ["other.jsonl"]
    rows_file(other, [{"text": "ab c"}])
    wrong = lab.command(["compare", str(tmp_path / "c"), "--resume"], tmp_path / "c")
    assert wrong["code"] == 2
    assert "has other rows than when the comparison began" in wrong["said"]


def test_the_pick_is_scored_at_smaller_scales_and_nothing_is_trained(lab, whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "copy")
    results = read_comparison(folder)
    plan = saved_plan(folder)
    for pick in results.candidates:
        for job in scale_jobs(results.asked, plan, folder, pick):
            assert not job.done()
            job.work()
            assert job.done()
        tables = read_kept_tables(results)
        found = find_scales(results, pick, tables, np.zeros(8), share=True)
        assert [finding.scale for finding in found.at] == [0.5, 0.75]
        half, more = (abs(finding.lost_change.value) for finding in found.at)
        assert half > more > 0
    rescored = lab.command(["report", str(folder), "--metric", "loss"], folder)
    assert (rescored["code"], rescored["steps"]) == (0, 0)
    names = {line.rows for line in read_predictions(folder / results.candidates[0].runs[0].folder)}
    assert any(name.endswith("test.jsonl (scale 0.75)") for name in names)


def test_the_time_of_a_step_is_that_of_the_fastest_run(whole):
    folder, _ = whole
    for line in read(folder / "report.json")["lines"]:
        runs = folder / "runs" / line["method"] / str(line["trainable"])
        times = [read(path)["seconds_per_step"] for path in runs.glob("seed*/result.json")]
        assert len(times) == 2
        assert line["seconds_per_step"] == min(times) > 0


KILLED_AT = {
    "in the first trial": r"open trials/lora/.*trial-0/checkpoint-.*",
    "between two trials": r"os.mkdir trials/lora/[0-9]+/trial-1",
    "before the search has its result": r"os.rename .*search.json",
    "before a run is scored": r"os.rename runs/lmam/.*/seed1/.*predictions.jsonl",
    "before a run has its losses elsewhere": r"os.rename runs/lmam/.*/seed1/.*kept.json",
    "before the base has them": r"os.rename kept/.*kept.json",
    "before the baselines": r"os.rename .*baselines.json",
}


@pytest.mark.more
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(moment, marks=[] if "scored" in moment else pytest.mark.slow)
        for moment in KILLED_AT
    ],
)
def test_a_comparison_that_was_killed_goes_on_and_repeats_no_finished_job(
    lab, place, whole, moment, tmp_path
):
    expected, reply = whole
    folder = tmp_path / "comparison"
    killed = lab.command(words(place, folder), folder, at=KILLED_AT[moment])
    assert killed["code"] == -9
    before = {name: path.stat().st_mtime_ns for name, path in trained(folder).items()}
    again = lab.command(["compare", str(folder), "--resume"], folder)

    assert again["code"] == 0, again["said"]
    assert searches(folder) == searches(expected)
    assert final_losses(folder) == final_losses(expected)
    assert read(folder / "baselines.json") == read(expected / "baselines.json")
    after = {name: path.stat().st_mtime_ns for name, path in trained(folder).items()}
    assert {name: after[name] for name in before} == before
    assert killed["steps"] + again["steps"] <= reply["steps"] + STEPS  # of the one that was killed


def trained(folder):
    """A file that only a training writes, at its end or its last checkpoint, for each done job."""
    found = {str(p.parent.relative_to(folder)): p for p in folder.glob("trials/*/*/*/trial.json")}
    for path in folder.glob("runs/*/*/*/adapter/adapter_model.safetensors"):
        if (path.parents[1] / "result.json").is_file():
            found[str(path.parents[1].relative_to(folder))] = path
    return found


@pytest.mark.more
def test_a_report_is_written_again_by_any_metric_without_a_step(lab, whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "copy")
    (tmp_path / "my.py").write_text(
        "def longest(prompt, response, answer, row): return len(prompt + response)\n"
    )
    names = [name for line in read(folder / "report.json")["lines"] for name in [line["label"]]]
    lengths = [len(row["prompt"] + row["response"]) for row in ROWS[28:]]
    for metric in ("loss", "contains", "macro_f1", "chrf", f"{tmp_path / 'my.py'}:longest"):
        reply = lab.command(["report", str(folder), "--metric", metric], folder)
        assert (reply["code"], reply["steps"]) == (0, 0), reply["said"]
        summary = read(folder / "report.json")
        assert summary["metric"] == metric.split("/")[-1]
        assert sorted(line["label"] for line in summary["lines"]) == sorted(names)
        scores = [line["score"] for line in summary["lines"]]
        assert scores == sorted(scores, reverse=metric != "loss")
        as_it_is, common = summary["baselines"]
        assert as_it_is["score"] is not None
        assert common["reason"] == ("it has no loss on these rows" if metric == "loss" else None)
    assert scores == [as_it_is["score"]] * 2 == [pytest.approx(sum(lengths) / 8)] * 2
    losses = lab.command(["report", str(folder), "--metric", "loss"], folder)
    assert "nats)" in " ".join(losses["said"].split())
    again = lab.command(["report", str(folder)], folder)
    assert again["code"] == 0
    assert read(folder / "report.json")["metric"] == "exact_match"
    wrong = lab.command(["report", str(folder), "--metric", "accuracy"], folder)
    assert wrong["code"] == 2
    assert "metric='accuracy' does not score prompt rows: take loss" in wrong["said"]


@pytest.mark.more
def test_two_workers_that_are_killed_with_their_command_go_on_and_find_the_same(
    place, whole, tmp_path
):
    folder = tmp_path / "comparison"
    asked = words(place, folder, "--workers", "2", seeds="1")
    process = subprocess.Popen(
        [sys.executable, "-m", "lorada.cli", *asked], stderr=subprocess.PIPE, text=True
    )
    until(lambda: [*folder.glob("trials/*/*/trial-1/recipe.yaml")] or process.poll(), 240)
    workers = [int(path.read_text()) for path in folder.glob(f"trials/*/*/{JOB_FILE}")]
    process.kill()
    process.communicate()
    assert workers
    until(lambda: all(map(is_gone, workers)), 20)
    assert not list(folder.glob("runs/*/*/*/result.json"))
    printed(sys.executable, "-m", "lorada.cli", "compare", folder, "--resume", "--workers", "2")
    assert searches(folder) == searches(whole[0])
    expected = final_losses(whole[0])
    assert final_losses(folder) == {name: expected[name] for name in final_losses(folder)}
    log = (next(folder.glob("runs/lora/*/seed1")) / LOG_FILE).read_text()
    assert "> training at learning rate" in log
    assert f"step 1 of {STEPS}" in log


@pytest.mark.more
def test_two_commands_share_the_jobs_of_a_comparison_and_train_none_twice(
    place, whole, works, tmp_path
):
    folder = tmp_path / "comparison"
    asked = words(place, folder, "--resume", seeds="1")
    other = subprocess.Popen(
        [sys.executable, "-m", "lorada.cli", *asked], stderr=subprocess.PIPE, text=True
    )
    until(lambda: [*folder.rglob(JOB_FILE)] or other.poll() is not None, 240)
    _, err = works(*asked)
    _, of_other = other.communicate(timeout=240)
    assert other.returncode == 0, of_other
    done = re.findall(r"\] ([\w ]+): done in", err + of_other)
    jobs = [name for name in done if name != "the model as it is"]
    assert len(jobs) == len(set(jobs)) == 6  # two searches, two runs, baselines, kept rows
    assert searches(folder) == searches(whole[0])
    expected = final_losses(whole[0])
    assert final_losses(folder) == {name: expected[name] for name in final_losses(folder)}
    for run in folder.glob("runs/*/*/*"):
        assert (run / LOG_FILE).read_text().count(f"step 1 of {STEPS}") == 1
    assert len(read(folder / "report.json")["lines"]) == 2
    assert read(folder / "baselines.json") == read(whole[0] / "baselines.json")
    assert not (folder / "failures.json").exists()


@pytest.mark.more
def test_rows_of_one_group_count_together_from_the_file_to_the_report(lab, place, tmp_path):
    for name, rows in (("train", ROWS[:27]), ("test", ROWS[28:])):
        grouped = [{**row, "passage": f"p{number // 4}"} for number, row in enumerate(rows)]
        rows_file(place / f"{name}_groups.jsonl", grouped)
    asked = words(
        place, tmp_path / "c", "--columns", "group=passage", rows="_groups", trials=1
    )  # fmt: skip
    reply = lab.command(asked, tmp_path / "c")
    assert reply["code"] == 0, reply["said"]
    for run in final_losses(tmp_path / "c"):
        lines = read_predictions(tmp_path / "c" / run)
        assert [line.group for line in lines[:8]] == ["p0"] * 4 + ["p1"] * 4
    assert read_comparison(tmp_path / "c").groups == ["p0"] * 4 + ["p1"] * 4
    said = read(tmp_path / "c" / "report.json")["sentences"]
    assert any(each.startswith("With 2 groups no difference") for each in said)


@pytest.mark.more
def test_a_rank_and_the_rate_of_a_map_are_chosen_and_the_report_says_them(lab, place, tmp_path):
    folder, name = tmp_path / "comparison", "lora+lmam:lora.r=1|2"
    reply = lab.command(words(place, folder, methods=[name, "lora:r=1"], seeds="1"), folder)
    assert reply["code"] == 0, reply["said"]
    (search,) = folder.glob("trials/lora+lmam*/*/search.json")
    search = read(search)
    tried = {(trial["choice"], trial["rate"]) for trial in search["trials"]}
    assert (search["choice"], search["rate"]) in tried
    factors = [trial["map_factor"] for trial in search["trials"]]
    assert min(factors) <= search["map_factor"] <= max(factors)
    assert {trial["choice"] for trial in search["trials"]} == {0, 1}
    assert len({trial["map_factor"] for trial in search["trials"]}) >= 3
    (run,) = folder.glob("runs/lora+lmam*/*/seed1/result.json")
    result, rank = read(run), 1 + search["choice"]
    assert result["recipe"]["parts"]["lora"]["r"] == rank
    assert result["recipe"]["parts"]["lmam"]["map_learning_rate"] == search["map_rate"]
    assert result["recipe"]["training"]["learning_rate"] == search["rate"]
    summary = read(folder / "report.json")
    line = next(line for line in summary["lines"] if line["label"] == name)
    assert (line["rates"], line["map_rates"]) == ([search["rate"]], [search["map_rate"]])
    assert line["trainable"] == result["parameters"]["trainable"]
    assert line["sizes"] == f"lora.r={rank}"
    said = f"Of 2 settings of {name} the rows set aside chose lora+lmam:lora.r={rank}."
    assert said in summary["sentences"]
    shown = f"{search['rate']:.2g}\n(map {search['map_rate']:.2g})"
    assert shown in (folder / "report.html").read_text()
    (folder / "report.json").unlink()  # the only thing that is left to do
    assert lab.command(["compare", str(folder), "--resume"], folder)["steps"] == 0
    assert read(folder / "report.json") == summary


@pytest.mark.more
def test_labels_are_compared_too(json_of, place, tmp_path):
    folder = tmp_path / "comparison"
    asked = words(place, folder, model="bert", rows="_labels", methods=["lora", "bitfit"])
    assert json_of(*asked, "--with-text") == read(folder / "report.json")
    found = read(folder / "baselines.json")
    assert "drawn anew" in found["as_it_is"]["reason"]
    assert "--" not in found["as_it_is"]["reason"]  # nobody has passed an option for it
    assert found["commonest"]["answer"] == "n"
    right = [100.0 * (row["label"] == "n") for row in LABELS[24:]]
    assert found["commonest"]["row_scores"]["accuracy"] == right
    runs = [folder / name for name in sorted(final_losses(folder))]
    assert len(runs) == 4
    for run in runs:
        lines = read_predictions(run)
        assert [line.right for line in lines] == [row["label"] for row in LABELS[24:]]
        (metrics,) = read_result(run).metrics.values()
        right_share = sum(line.metrics["accuracy"] for line in lines) / 8
        assert metrics.scores["accuracy"] == pytest.approx(right_share)
    by_loss = json_of("report", str(folder), "--metric", "loss")
    losses = [sum(line.loss for line in read_predictions(run)) / 8 for run in runs]
    means = sorted([sum(losses[:2]) / 2, sum(losses[2:]) / 2])
    assert [line["score"] for line in by_loss["lines"]] == pytest.approx(means)


@pytest.mark.more
def test_a_benchmark_is_compared_on_its_own_test_rows(works, mistake, place, tmp_path):
    rows = [{"sentence1": "ab" * (i % 5 + 1), "sentence2": "c" * i, "label": i % 2}
            for i in range(24)]  # fmt: skip
    split_file(tmp_path / "data" / "glue" / "rte", "train", rows[:16])
    split_file(tmp_path / "data" / "glue" / "rte", "validation", rows[16:])
    folder = tmp_path / "comparison"
    works(
        "compare", "--model", place / "bert", "--task", "rte", "--data-dir", tmp_path / "data",
        "--methods", "lora", "--seeds", 1, "--trials", 0, "--output", folder, *SETTINGS,
    )  # fmt: skip
    assert read(folder / "plan.json")["held_out"]["rte"]["rows"] == 8
    (run,) = folder.glob("runs/lora/*/seed1")
    assert read_result(run).metrics["rte"].n == 8
    assert len(read(folder / "baselines.json")["commonest"]["row_scores"]["accuracy"]) == 8
    rows[20] = rows[3]
    split_file(tmp_path / "data" / "glue" / "rte", "validation", rows[16:])
    line = mistake("compare", folder, "--resume")
    assert "1 of 8 held-out rows (rte) are training rows too" in line
