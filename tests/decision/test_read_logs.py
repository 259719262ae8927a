"""Scores in logs that lm-eval, Inspect and promptfoo wrote; see logs/README.md."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lorada.decision.log_records import Log
from lorada.decision.log_runs import name_runs
from lorada.decision.read_logs import holds_logs, read_logs

LOGS = Path(__file__).parent / "logs"


@pytest.fixture
def copied(tmp_path):
    """Copy logs to where they may be changed."""

    def copy(name):
        target = tmp_path / "logs"
        source = LOGS / name
        if source.is_dir():
            return shutil.copytree(source, target)
        target.mkdir()
        return Path(shutil.copy(source, target))

    return copy


def only(folder, pattern):
    """The one file in a folder, at any depth."""
    (path,) = folder.rglob(pattern)
    return path


def changed(path, change):
    """Change a JSON file, or each line of a file of JSON Lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        content = json.loads(text)
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")
        return
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def packed(path, members):
    """A zip of JSON files, as Inspect wrote them before it packed them with Zstandard."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, json.dumps(content))
    return path


HEADER = {"version": 2, "status": "success", "eval": {"task": "sums", "model": "toy/small"}}
SAMPLE = {"id": 1, "epoch": 1, "target": "2", "scores": {"exact": {"value": "C"}}}


# lm-eval


def test_a_folder_of_lm_eval_is_methods_seeds_and_rows():
    read = read_logs(LOGS / "lm_eval", "acc_norm")
    assert read.table.seeds == {"ia3": ("1", "2"), "lora": ("1", "2")}
    for method, runs in read.table.scores.items():
        for seed, scores in zip((1, 2), runs, strict=True):
            path = only(LOGS / "lm_eval" / f"{method}-{seed}", "samples_picks_*.jsonl")
            samples = [json.loads(line) for line in path.read_text().splitlines()]
            assert list(scores) == [sample["acc_norm"] for sample in samples]
    assert read.lower_is_better is False
    assert read.notes[0] == (
        "acc_norm of picks, from logs of lm-eval: ia3 (seeds 1, 2), lora (seeds 1, 2)"
    )
    assert "Tasks without acc_norm are left out: makes, sums" in read.notes


def test_a_metric_behind_filters_has_the_name_that_lm_eval_prints():
    read = read_logs(LOGS / "lm_eval", "exact_match,flexible-extract")
    assert read.table.scores["lora"].shape == (2, 3)
    unfiltered, filtered = (read_logs(LOGS / "lm_eval", name) for name in ("acc,none", "acc"))
    assert unfiltered.notes == filtered.notes


def test_lower_is_better_where_the_totals_say_so(copied):
    folder = copied("lm_eval")
    for path in folder.rglob("results_*.json"):
        changed(path, lambda results: results["higher_is_better"]["picks"].update(acc=False))
    assert read_logs(folder, "acc").lower_is_better is True
    assert read_logs(folder, "acc_norm").lower_is_better is False
    with pytest.raises(
        ValueError, match=r"--lower-is-better, but .* says that a higher acc_norm is"
    ):
        read_logs(folder, "acc_norm", lower_is_better=True)
    assert read_logs(LOGS / "inspect/seeds", lower_is_better=True).lower_is_better is True


def test_the_log_likelihood_behind_a_perplexity_is_better_the_higher():
    read = read_logs(LOGS / "lm_eval", "perplexity")
    assert read.lower_is_better is False
    assert any("log-likelihood: the higher the better" in sentence for sentence in read.notes)


def test_samples_without_totals_are_named_by_their_folders(copied):
    folder = copied("lm_eval")
    for path in folder.rglob("results_*.json"):
        path.unlink()
    read = read_logs(folder, "acc")
    assert read.table.seeds == {"ia3": ("1", "2"), "lora": ("1", "2")}
    assert read.lower_is_better is False


def test_models_beside_each_other_are_methods_and_seeds_by_their_names(copied, tmp_path):
    for model in copied("lm_eval").glob("*/*"):
        shutil.move(model, tmp_path / "flat" / model.name)
    assert read_logs(tmp_path / "flat", "acc").table.seeds == {
        "ia3": ("1", "2"), "lora": ("1", "2"),
    }  # fmt: skip


def test_rows_of_several_tasks_are_told_apart(copied):
    folder = copied("lm_eval")
    for path in [*folder.rglob("samples_sums_*"), *folder.rglob("samples_makes_*")]:
        path.unlink()
    for path in list(folder.rglob("samples_picks_*")):
        shutil.copy(path, path.with_name(path.name.replace("picks", "more_picks")))
    read = read_logs(folder, "acc")
    assert read.table.scores["lora"].shape == (2, 6)
    assert read.notes[0].startswith("acc of more_picks, picks, from")


# Inspect


def test_a_folder_of_inspect_is_methods_seeds_and_rows():
    read = read_logs(LOGS / "inspect/seeds")
    assert {name: list(runs.mean(axis=1)) for name, runs in read.table.scores.items()} == {
        "ia3": [1 / 3, 1 / 3], "lora": [1.0, 1 / 3],
    }  # fmt: skip
    assert read.metric == "exact"
    assert read.lower_is_better is False


def test_a_zip_of_inspect_and_its_json_are_read_alike():
    for metric, scores in (("grade", [1, 0.5]), ("parts/right", [1, 0]), ("parts/letters", [1, 2])):
        for name in ("several", "several_zip"):
            table = read_logs(LOGS / "inspect" / name, metric).table
            assert list(table.scores["small"][0]) == scores, (name, metric)


def test_a_zip_without_a_summary_is_read_sample_by_sample(tmp_path):
    wrong = {**SAMPLE, "id": 2, "scores": {"exact": {"value": "I"}}}
    members = {
        "header.json": HEADER,
        "samples/1_epoch_1.json": SAMPLE,
        "samples/2_epoch_1.json": wrong,
    }
    read = read_logs(packed(tmp_path / "a.eval", members))
    assert np.array_equal(read.table.scores["small"], [[1, 0]])


def test_epochs_are_runs_only_where_each_method_is_one_model(copied):
    read = read_logs(LOGS / "inspect/epochs")
    assert read.table.seeds == {"large": ("1", "2"), "small": ("1", "2")}
    assert "Runs are answers drawn again from one model" in read.notes[-1]
    folder = copied("inspect/epochs")
    for number, path in enumerate(sorted(folder.glob("*.eval")), start=1):
        seed = folder / f"lora-{number}"
        seed.mkdir()
        shutil.move(path, seed)
    of_seeds = read_logs(folder)
    assert of_seeds.table.seeds == {"lora": ("1", "2")}
    means = [read.table.scores[name].mean(axis=0) for name in ("small", "large")]
    assert sorted(map(tuple, of_seeds.table.scores["lora"])) == sorted(map(tuple, means))
    assert of_seeds.notes[-1] == "Of several answers of a model to a row the mean is taken"


def test_a_failed_log_is_left_out_beside_the_one_of_its_next_attempt(copied):
    folder = copied("inspect/failed")
    failed = only(folder, "*.eval")
    done = packed(folder / "done.eval", {"header.json": HEADER, "summaries.json": [SAMPLE]})
    assert read_logs(folder).notes[1] == f"{failed.name} is left out, as it was not finished"
    done.unlink()
    with pytest.raises(ValueError, match=r"not finished \(error RuntimeError\('no answer'\)\)"):
        read_logs(folder)


def test_an_evaluation_that_still_goes_on_is_not_read(tmp_path):
    start = {"_journal/start.json": {"version": 2, "eval": HEADER["eval"]}}
    path = packed(tmp_path / "a.eval", start)
    with pytest.raises(ValueError, match=r"a.eval is not finished \(started\): go on with inspect"):
        read_logs(path)


def test_a_path_in_a_zip_leads_nowhere(tmp_path):
    members = {"header.json": HEADER, "summaries.json": [SAMPLE], "../../evil.json": [1]}
    packed(tmp_path / "logs.eval", members)
    read_logs(tmp_path / "logs.eval")
    assert [path.name for path in tmp_path.iterdir()] == ["logs.eval"]


def test_more_than_a_summary_can_have_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("lorada.decision.read_inspect.MOST_BYTES", 1000)
    members = {"header.json": HEADER, "summaries.json": ["0" * 2000]}
    path = packed(tmp_path / "logs.eval", members)
    with pytest.raises(ValueError, match=r"summaries.json has 2,004 bytes unpacked, more than 1,0"):
        read_logs(path)


# promptfoo


def test_repeats_of_promptfoo_are_runs_of_a_provider():
    read = read_logs(LOGS / "promptfoo/repeats.json")
    assert read.metric == "pass"
    assert read.table.seeds == {"lora": ("1", "2"), "ia3": ("1", "2")}
    assert {name: runs.mean() for name, runs in read.table.scores.items()} == {
        "lora": 1, "ia3": pytest.approx(2 / 3),
    }  # fmt: skip


def test_a_metric_of_promptfoo_is_of_the_tests_that_have_it():
    of_all = read_logs(LOGS / "promptfoo/repeats.json", "score")
    named = read_logs(LOGS / "promptfoo/repeats.json", "digit")
    assert (of_all.table.scores["ia3"].shape, named.table.scores["ia3"].shape) == ((2, 3), (2, 2))


def test_prompts_and_providers_of_promptfoo_are_methods():
    assert list(read_logs(LOGS / "promptfoo/prompts.json").table.scores) == [
        f"{provider}/{prompt} {{{{a}}}} plus {{{{b}}}}{end}"
        for provider in ("lora", "ia3")
        for prompt, end in (("What is", "?"), ("Say", ""))
    ]


def test_files_of_promptfoo_are_seeds_and_their_tests_match_in_any_order(tmp_path):
    for seed in (1, 2):
        shutil.copy(LOGS / "promptfoo/prompts.json", tmp_path / f"seed-{seed}.json")
    changed(
        tmp_path / "seed-2.json",
        lambda content: [
            result.update(testIdx=2 - result["testIdx"]) for result in content["results"]["results"]
        ],
    )
    read = read_logs(tmp_path)
    assert set(read.table.seeds.values()) == {("1", "2")}
    assert all(np.array_equal(*runs) for runs in read.table.scores.values())


def test_rows_that_no_run_gets_right_are_named(copied):
    folder = copied("lm_eval")
    for path in folder.rglob("samples_picks_*"):
        changed(path, lambda sample: sample.update(acc=float(sample["doc_id"] == 1)))
    notes = read_logs(folder, "acc").notes
    assert "2 of 3 rows are wrong in all 4 runs: 0, 2" in notes


# What is read as what


@pytest.mark.parametrize(
    ("folders", "models", "runs"),
    [
        (["lora-1", "lora-2", "base"], ["m"] * 3, ["lora 1", "lora 2", "base 1"]),
        (["lora/1", "lora/2"], ["m"] * 2, ["lora 1", "lora 2"]),
        (["seed_1/lora", "seed_1/ia3"], ["m"] * 2, ["lora 1", "ia3 1"]),
        (["out/lora-seed3", "out/ia3-seed3"], ["m"] * 2, ["lora 3", "ia3 3"]),
        (["", ""], ["openai/gpt-4", "openai/gpt-5"], ["gpt-4 1", "gpt-5 1"]),
        (["", ""], ["runs/lora-seed1/adapter", "runs/lora-seed2/adapter"], ["lora 1", "lora 2"]),
        (["", ""], ["lora/checkpoint-50", "ia3/checkpoint-60"], ["lora 1", "ia3 1"]),
        (["out/1", "out/2"] * 2, ["a", "a", "b", "b"], ["a 1", "a 2", "b 1", "b 2"]),
        (["x", "x", "y"], ["a", "b", "a"], ["x a 1", "x b 1", "y a 1"]),
        ([""], ["org/model"], ["model 1"]),
    ],
)
def test_methods_and_seeds_are_told_by_folders_or_else_by_models(folders, models, runs):
    logs = [
        Log("lm-eval", Path("a"), tuple(filter(None, folder.split("/"))), tuple(model.split("/")),
            "task", ())
        for folder, model in zip(folders, models, strict=True)
    ]  # fmt: skip
    assert [f"{name.method} {name.seed}" for name in name_runs(logs)] == runs


def test_a_table_is_no_log(tmp_path):
    tables = {
        "a.csv": "method,seed,row,score\n",
        "a.jsonl": '{"method": "lora"}\n',
        "a.json": '[{"method": "lora"}]',
    }
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
        assert not holds_logs(tmp_path / name)
    assert holds_logs(only(LOGS / "lm_eval/lora-1", "samples_picks*"))
    assert holds_logs(LOGS / "promptfoo/repeats.json")


# Mistakes


def twice(folder):
    path = only(folder / "lora-1", "samples_picks_*")
    path.write_text(path.read_text() * 2)


def again(folder):
    path = only(folder / "lora-1", "samples_picks_*")
    shutil.copy(path, path.with_name("samples_picks_2026-12-04T00-00-00.000000.jsonl"))


def fewer_rows(folder):
    path = only(folder / "ia3-2", "samples_picks_*")
    path.write_text(path.read_text().splitlines()[0] + "\n")


def other_rows(folder):
    path = only(folder / "ia3-2", "samples_picks_*")
    changed(path, lambda sample: sample.update(doc_hash="other"))


def broken_line(folder):
    path = only(folder / "ia3-2", "samples_picks_*")
    path.write_text(path.read_text()[:-9])


def broken_totals(folder):
    only(folder / "ia3-2", "results_*").write_text("{")


def totals_alone(folder):
    for path in folder.rglob("samples_*"):
        path.unlink()


def nothing(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def another_tool(folder):
    shutil.copytree(LOGS / "inspect/seeds", folder / "inspect")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (twice, r"samples_picks_.* has two answers for row 0: leave one out"),
        (again, "lora, seed 1, has two answers for each row, in .* give each run a folder METHOD-"),
        (fewer_rows, "ia3, seed 2, lacks 2 of 3 rows that others have, such as picks 1, picks 2"),
        (
            other_rows,
            r"row 0 of .*lora-1.* is another one than in .*ia3-2|row 0 of .*ia3-2.* is an",
        ),
        (broken_line, r"ia3-2.*is broken \(line 3 is no sample of lm-eval\)"),
        (broken_totals, r"results_.*json is broken \(Expecting"),
        (totals_alone, r"has totals of whole runs, which say nothing of rows.*docs/published.md"),
        (nothing, "logs has no logs with scores of rows, such as lm-eval's samples_"),
        (another_tool, "has logs of Inspect and of lm-eval|has logs of lm-eval and of Inspect"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(copied, change, said):
    folder = copied("lm_eval")
    change(folder)
    with pytest.raises(ValueError, match=said) as error:
        read_logs(folder, "acc")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "metric", "said"),
    [
        (
            "lm_eval",
            None,
            r"has 5 metrics: pass --metric acc or acc_norm or exact_match,flexible-ex",
        ),
        ("lm_eval", "acc_nrm", "unknown --metric 'acc_nrm'; did you mean acc_norm"),
        ("inspect/several_zip", None, "has 3 metrics: pass --metric grade or parts/letters or"),
        (
            "inspect/one_error",
            None,
            r"small, seed 1, has no score of row add1 \(RuntimeError\('no answer'\)\): evaluate",
        ),
        (
            "promptfoo/fails.json",
            None,
            r"ia3, seed 1, has no score of row a=2, b=2 \(\w+\) \(no an",
        ),
    ],
)
def test_scores_that_cannot_be_read_are_one_line(name, metric, said):
    with pytest.raises(ValueError, match=said) as error:
        read_logs(LOGS / name, metric)
    assert "\n" not in str(error.value)


def test_a_broken_zip_is_one_line(copied):
    path = only(copied("inspect/several_zip"), "*.eval")
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("summaries.json").header_offset
    other_bytes = content[: start + 60] + bytes(40) + content[start + 100 :]
    for broken in (content[:-99], other_bytes, b"a"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"\.eval is broken \(.*\): copy or write it again"):
            read_logs(path, "grade")


def test_two_providers_of_one_name_are_to_be_labelled(copied):
    path = copied("promptfoo/repeats.json")
    text = path.read_text().replace('"label": "ia3"', '"label": "lora"')
    path.write_text(text)
    with pytest.raises(ValueError, match="several providers lora: give each a label"):
        read_logs(path)
