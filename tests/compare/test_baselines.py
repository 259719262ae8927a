"""A comparison with examples in the prompt and given answers, from one command to the report."""

import json
import re
import shutil

import pytest
from folders import bert_folder, llama_folder, rows_file, split_file

from lorada.compare.baselines.score_baselines import baselines_to_score
from lorada.compare.spec import Comparison

SETTINGS = ["max_steps=2", "max_length=32", "max_new_tokens=2", "training.report_to=[]"]
SIGNS = [
    {"prompt": f"{a}>{b}?", "response": " y" if a > b else " n"} for a in range(6) for b in range(6)
]
TRAIN, TEST = SIGNS[::2], SIGNS[1::2]
GIVEN = [{**row, "answer": row["response"] if number % 6 else "?"}
         for number, row in enumerate(TEST)]  # fmt: skip
LABELS = [{"text": "ab" * (i % 9 + 1) + "c" * i, "label": "ny"[i % 2]} for i in range(32)]
TITLES = {
    "shots1": "1 example in the prompt",
    "shots2": "2 examples in the prompt",
    "likeliest": "the likeliest of the known answers",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("baselines")
    llama_folder(place / "llama")
    bert_folder(place / "bert")
    rows_file(place / "train.jsonl", TRAIN)
    rows_file(place / "test.jsonl", TEST)
    rows_file(place / "a.jsonl", GIVEN)
    rows_file(place / "train_labels.jsonl", LABELS[:24])
    rows_file(place / "test_labels.jsonl", LABELS[24:])
    return place


def words(place, output, *more, model="llama", rows="", shots="1,2"):
    asked = ["--shots", shots] if shots else []
    return list(map(str, [
        "compare", "--model", place / model, "--data", place / f"train{rows}.jsonl",
        "--held-out", place / f"test{rows}.jsonl", "--methods", "lora", "--seeds", "1,2",
        "--trials", 1, "--output", output, *asked, *more, *SETTINGS,
    ]))  # fmt: skip


@pytest.fixture(scope="module")
def whole(lab, place):
    """A comparison with all baselines that nothing has interrupted, and what it replied."""
    folder = place / "whole"
    reply = lab.command(words(place, folder, "--answers", place / "a.jsonl"), folder)
    assert reply["code"] == 0, reply["said"]
    return folder, reply


def read(path):
    return json.loads(path.read_text())


@pytest.mark.more
def test_all_baselines_are_in_the_report_with_what_their_prompts_cost(whole, place):
    folder, _ = whole
    stored = read(folder / "baselines.json")
    given = f"answers {place / 'a.jsonl'}"
    assert {"as_it_is", "commonest", "shots1", "shots2", "likeliest", given} <= stored.keys()
    right = [100.0 * (row["answer"] == row["response"]) for row in GIVEN]
    assert stored[given]["row_scores"]["exact_match"] == right
    assert [len(stored[name].get("other_draws", [])) for name in TITLES] == [2, 2, 0]
    assert 5 < stored["shots1"]["prompt_tokens"] < stored["shots2"]["prompt_tokens"]
    summary = read(folder / "report.json")
    shown = {baseline["name"]: baseline for baseline in summary["baselines"]}
    for name, title in TITLES.items():
        draws = [stored[name]["row_scores"], *stored[name].get("other_draws", [])]
        values = [value for draw in draws for value in draw["exact_match"]]
        assert shown[title]["score"] == pytest.approx(sum(values) / len(values))
    assert shown["the answers of a.jsonl"]["score"] == pytest.approx(sum(right) / len(right))
    page = (folder / "report.html").read_text()
    assert all(title in page for title in (*TITLES.values(), "the answers of a.jsonl"))


@pytest.mark.more
def test_the_verdict_is_about_the_best_of_what_needs_no_training(whole):
    summary = read(whole[0] / "report.json")
    scores = {baseline["name"]: baseline["score"] or 0 for baseline in summary["baselines"]}
    gain = summary["gain"]
    assert gain["over"] == max(scores, key=scores.get) == "the answers of a.jsonl"
    assert not gain["is_shown"]
    assert gain["low"] < gain["value"] < 0
    assert summary["verdict"].startswith("Do not tune yet: ")
    assert "answers of a.jsonl" in summary["verdict"]


@pytest.mark.more
@pytest.mark.parametrize("moment", ["shots2/draw2.json", "baselines/scores.json"])
def test_baselines_that_were_killed_go_on_to_the_same_bytes(lab, place, whole, tmp_path, moment):
    expected, _ = whole
    folder = tmp_path / "comparison"
    asked = words(place, folder, "--answers", place / "a.jsonl")
    killed = lab.command(asked, folder, at=rf"os.rename .*{re.escape(moment.split('/')[-1])}"
                         if "scores" in moment else r"open .*baselines/shots2/.*")  # fmt: skip
    assert killed["code"] == -9
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("shots1/*.json")}
    assert len(before) == 4  # three draws, and how the rows are asked
    again = lab.command(["compare", str(folder), "--resume"], folder)
    assert (again["code"], again["steps"]) == (0, 0), again["said"]
    assert (folder / "baselines.json").read_bytes() == (expected / "baselines.json").read_bytes()
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.more
def test_baselines_that_failed_have_a_reason_in_the_report_and_are_tried_again(
    lab, whole, tmp_path
):
    folder = shutil.copytree(whole[0], tmp_path / "copy")
    (folder / "baselines" / "scores.json").unlink()
    style = folder / "baselines" / "shots1" / "style.json"
    style.write_text('"telepathy"')
    failed = lab.command(["compare", str(folder), "--resume"], folder)
    summary = read(folder / "report.json")
    (shown,) = [one for one in summary["baselines"] if one["name"] == "baselines"]
    assert "style.json is damaged" in shown["reason"]
    assert "style.json is damaged" in " ".join((folder / "report.html").read_text().split())
    assert read(folder / "failures.json").keys() == {"baselines"}
    assert "the answers of a.jsonl" in {one["name"] for one in summary["baselines"]}
    assert failed["code"] == 2, failed["said"]
    style.unlink()
    again = lab.command(["compare", str(folder), "--resume"], folder)
    assert (again["code"], again["steps"]) == (0, 0), again["said"]
    assert read(folder / "baselines.json") == read(whole[0] / "baselines.json")


@pytest.mark.more
def test_a_report_by_another_metric_scores_the_given_answers_by_it_too(lab, whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "copy")
    (tmp_path / "my.py").write_text("def size(prompt, response, answer, row): return len(answer)\n")
    for metric in ("contains", f"{tmp_path / 'my.py'}:size", "loss"):
        reply = lab.command(["report", str(folder), "--metric", metric], folder)
        assert (reply["code"], reply["steps"]) == (0, 0), reply["said"]
        shown = {one["name"]: one for one in read(folder / "report.json")["baselines"]}
        given, examples = shown["the answers of a.jsonl"], shown["2 examples in the prompt"]
        if metric == "contains":
            assert given["score"] is not None
            assert examples["score"] is not None
        elif metric == "loss":
            assert given["reason"] == examples["reason"] == "it has no loss on these rows"
        else:
            assert given["score"] == pytest.approx(sum(len(row["answer"]) for row in GIVEN) / 18)
            for name, title in TITLES.items():
                answers = read(whole[0] / "baselines.json")[name]["answers"]
                sizes = [len(answer) for draw in answers for answer in draw]
                assert len(sizes) == 18 * len(answers)
                assert shown[title]["score"] == pytest.approx(sum(sizes) / len(sizes))


@pytest.mark.more
def test_the_probe_of_a_comparison_of_classes_is_in_its_report(lab, place, tmp_path):
    folder = tmp_path / "comparison"
    reply = lab.command(words(place, folder, model="bert", rows="_labels", shots=None), folder)
    assert reply["code"] == 0, reply["said"]
    names = [one["name"] for one in read(folder / "report.json")["baselines"]]
    assert names == ["the model as it is", "the commonest answer", "a linear probe"]


BAD = {
    "examples of classes": (
        {"model": "bert", "rows": "_labels"},
        "--shots 2: .*train_labels.jsonl has label rows, which are not answered with a text: leave",
    ),
    "more examples than rows": (
        {"shots": "4,19"}, "--shots 19: there are only 18 training rows: take fewer examples",
    ),
    "no number": ({"shots": "0"}, "--shots"),
    "a number twice": ({"shots": "2,2"}, "--shots names 2 twice: leave one out"),
}  # fmt: skip


@pytest.mark.parametrize("mistake_of", BAD)
def test_examples_that_cannot_be_shown_are_refused_before_anything_is_written(
    mistake, place, tmp_path, mistake_of
):
    options, message = BAD[mistake_of]
    assert re.search(message, mistake(*words(place, tmp_path / "c", **options)))
    assert not (tmp_path / "c").exists()


def test_a_model_without_room_for_one_example_is_one_line(mistake, place, tmp_path):
    llama_folder(tmp_path / "llama", max_position_embeddings=12)
    rows_file(tmp_path / "train.jsonl", TRAIN)
    rows_file(tmp_path / "test.jsonl", TEST)
    line = mistake(*words(tmp_path, tmp_path / "c"))
    assert (
        "--shots 2: not one example fits beside a held-out row in the 10 tokens that the model "
        "reads: leave out --shots"
    ) in line
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "gone.jsonl"),
        ([{"row": 1}], "gone.jsonl, row 1, has no 'answer', but row"),
        ([{**GIVEN[0], "prompt": "7>8?"}], "answers '7>8.', which is no held-out row of"),
        (GIVEN[1:], "has no answer to 1 held-out row"),
    ],
)
def test_answers_that_do_not_fit_are_refused_before_anything_is_written(
    mistake, place, tmp_path, rows, message
):
    if rows is not None:
        rows_file(tmp_path / "gone.jsonl", rows)
    line = mistake(*words(place, tmp_path / "c", "--answers", tmp_path / "gone.jsonl", shots=None))
    assert re.search(message, line)
    assert not (tmp_path / "c").exists()


def test_benchmarks_have_no_baselines_of_this_kind(mistake, place, tmp_path):
    comparison = Comparison(recipe={"task": "rte", "model": "m"}, methods=["lora"])
    assert baselines_to_score(comparison, None, None, tmp_path) == {}
    rows = [{"sentence1": "ab" * (i % 5 + 1), "sentence2": "c" * i, "label": i % 2}
            for i in range(24)]  # fmt: skip
    split_file(tmp_path / "data" / "glue" / "rte", "train", rows[:16])
    split_file(tmp_path / "data" / "glue" / "rte", "validation", rows[16:])
    for option, value in (("--shots", "2"), ("--answers", place / "a.jsonl")):
        line = mistake(
            "compare", "--model", place / "bert", "--task", "rte", "--data-dir", tmp_path / "data",
            "--methods", "lora", "--output", tmp_path / "c", option, value, *SETTINGS,
        )  # fmt: skip
        assert "--shots and --answers are for rows of your own: leave them out" in line
