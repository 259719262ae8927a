"""What ``lorada evaluate`` says beside a score, and which answers it takes again."""

import json
import shutil

import pytest
from folders import bert_folder, llama_folder, rows_file

from lorada.cli.options import parse_metrics
from lorada.inference import evaluate as evaluation
from lorada.runs.result import read_result

SETTINGS = ["max_steps=1", "max_length=24", "report_to=[]", "max_new_tokens=2"]
FUNCTION = "def stars(prompt, response, answer, row): return 20 * row['stars']\n"


def rows_of(count, **columns):
    """Prompts, of which two in three are answered by yes."""
    return [
        {"prompt": f"row {n}", "response": "no" if n % 3 == 0 else "yes", **columns}
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with models, rows and two runs."""
    from lorada.training.load_recipe import load_recipe
    from lorada.training.train import train

    place = tmp_path_factory.mktemp("evaluate")
    llama_folder(place / "llama")
    bert_folder(place / "bert")
    rows_file(place / "texts.jsonl", rows_of(9))
    rows_file(place / "held_out.jsonl", rows_of(12, stars=3))
    labels = [{"text": f"a {n}", "labels": ["x"] if n % 3 else ["x", "y"]} for n in range(9)]
    rows_file(place / "labels.jsonl", labels)
    for name, model, rows in (("run", "llama", "texts"), ("tags", "bert", "labels")):
        given = {"model": str(place / model), "data": str(place / f"{rows}.jsonl")}
        recipe = load_recipe(None, SETTINGS, {**given, "output": str(place / name)})
        train(recipe, quiet=True)
    return place


@pytest.fixture
def place(trained, tmp_path):
    """A copy of that folder, in which a run may be scored."""
    return shutil.copytree(trained, tmp_path / "place")


def test_the_commonest_answer_of_the_training_rows_is_scored_on_the_evaluated_rows(
    place, json_of, works
):
    assert read_result(place / "run").commonest_answer == "yes"
    found = json_of("evaluate", place / "run", "--data", place / "held_out.jsonl")
    assert found["commonest"] == pytest.approx({
        "answer": "yes", "exact_match": 200 / 3, "contains": 200 / 3, "balanced_accuracy": 50,
        "macro_f1": 40, "recall_no": 0, "recall_yes": 100,
    })  # fmt: skip
    out, _ = works("evaluate", place / "run", "--data", place / "held_out.jsonl")
    assert "the commonest answer of the training rows (yes), given to every row" in out
    tags = json_of("evaluate", place / "tags", "--data", place / "labels.jsonl")
    assert tags["commonest"]["answer"] == ["x"]
    assert tags["commonest"]["f1"] == pytest.approx((6 * 100 + 3 * 200 / 3) / 9)


def test_where_all_answers_differ_none_is_called_common(tmp_path):
    from lorada.data.rows.own_rows import load_rows
    from lorada.data.scoring.commonest_answer import commonest_answer, repeated_answer

    different = [{"prompt": "a", "response": str(n)} for n in range(3)]
    rows = load_rows(str(rows_file(tmp_path / "rows.jsonl", different)))
    assert (commonest_answer(rows), repeated_answer(rows)) == ("0", None)


def test_a_loss_that_covers_fewer_rows_says_how_many_it_covers(place, json_of, works):
    asked, read = (
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
    )
    answer = {"role": "assistant", "content": "yes"}
    turns = [*[asked, read] * 12, asked, answer]  # so many that the answer is beyond max_length
    rows = [{"messages": [asked, answer]}] * 5 + [{"messages": turns}]
    data = rows_file(place / "chats.jsonl", rows)
    found = json_of("evaluate", place / "run", "--data", data)
    assert (found["n"], found["loss_n"]) == (6, 5)
    out, _ = works("evaluate", place / "run", "--data", data)
    assert "(5 of 6 rows)" in out
    assert "the loss leaves out 1 row, which has no token of a right response" in out
    whole = json_of("evaluate", place / "run", "--data", place / "held_out.jsonl")
    assert "loss_n" not in whole


def test_another_metric_takes_the_stored_answers_only_under_the_same_conditions(
    place, json_of, caplog, monkeypatch
):
    run, data = place / "run", place / "held_out.jsonl"
    ask = ["evaluate", run, "--data", data]
    first = json_of(*ask)
    (place / "mine.py").write_text(FUNCTION)
    answered = []

    def answer(*given):
        answered.append(given)
        return original(*given)

    original = evaluation.answer_all
    monkeypatch.setattr(evaluation, "answer_all", answer)
    several = json_of(*ask, "--metric", f"chrf,{place}/mine.py:stars", "--metric", "loss")
    assert [*several][1:4] == ["chrf", "mine.py:stars", "loss"]
    assert several["mine.py:stars"] == 60
    assert several["loss"] == first["loss"]
    assert not answered
    assert f"{data}: the answers are those of the scoring before" in caplog.text
    assert json_of(*ask, "--metric", "loss")["loss"] == first["loss"]  # again from the stored
    assert not answered

    def answers_anew(*more):
        answered.clear()
        json_of(*ask, *more, "--metric", "contains")
        return bool(answered)

    assert answers_anew("--base")
    assert not answers_anew("--base")
    assert answers_anew("--max-new-tokens", "1")
    assert answers_anew()
    lines = (run / "predictions.jsonl").read_text().replace('"answer": "', '"answer": "x')
    (run / "predictions.jsonl").write_text(lines)
    assert answers_anew()  # as somebody has edited them
    weights = run / "adapter" / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert answers_anew()
    rows_file(data, rows_of(11, stars=3))
    assert answers_anew()


def test_a_function_may_come_first_and_its_file_may_have_a_comma(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.py", "b,c.py"):
        (tmp_path / name).write_text(FUNCTION)
    typed = ["a.py:stars,loss", "b,c.py:stars", "chrf,a.py:stars"]
    assert parse_metrics(typed) == ["a.py:stars", "loss", "b,c.py:stars", "chrf"]
    assert parse_metrics(None) == []


def test_metrics_with_commas_and_repeated_are_one_list_and_each_has_to_fit(place, mistake, json_of):
    ask = ["evaluate", place / "tags", "--data", place / "labels.jsonl", "--metric"]
    found = json_of(*ask, "exact_match, f1", "--metric", "exact_match")
    assert [*found][1:3] == ["exact_match", "f1"]
    lines = [json.loads(line) for line in (place / "tags/predictions.jsonl").open()]
    assert [line["score"] for line in lines] == [line["metrics"]["exact_match"] for line in lines]
    assert "metric='chrf' does not score labels rows" in mistake(*ask, "f1,chrf")
