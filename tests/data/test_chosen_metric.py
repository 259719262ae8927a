"""The metric that a user's own rows are scored by: by their length, by name, by a function."""

import math

import pytest
from folders import byte_tokenizer, refused
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_chrf

from lorada.data.metrics import classes, numbers
from lorada.data.scoring import answer_limit, choose_metric, refuse_unnamed, row_value
from lorada.data.task_rows import Rows
from lorada.data.tasks import TASKS
from lorada.training.load_recipe import load_recipe

FIVE, SIX = "it is a red lamp", "it is a red lamp indeed"


def turn(role, content):
    return {"role": role, "content": content}


def chat(*answers):
    """A chat with these answers, after a question that is longer than any of them."""
    asked = [turn("user", "which of all these lamps is it that you would like to buy today?")]
    return {"messages": [one for text in answers for one in (*asked, turn("assistant", text))]}


LENGTHS = {
    "five words": ("prompt", [{"prompt": SIX, "response": FIVE}], "exact_match", 16),
    "six words": ("prompt", [{"prompt": "", "response": r} for r in ("a", 5 * SIX)], "loss", 115),
    "a first turn of six words": ("messages", [chat(2 * SIX, "Two"), chat("a", "b")], "loss", 46),
    "chats of few words": ("messages", [chat("Yes!", FIVE)], "exact_match", 16),
    "a turn that only calls a tool": ("messages", [chat(None, "Two")], "exact_match", 3),
    "letters of a script without blanks": ("prompt", [{"response": "红色的灯在桌上"}], "loss", 21),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_the_responses_of_the_training_rows_choose_the_metric_and_the_length(case):
    form, rows, metric, tokens = LENGTHS[case]
    chosen = choose_metric(None, rows, form)
    assert chosen.name == metric
    how = "no" if metric == "exact_match" else "a"
    assert chosen.reason.startswith(f"{how} response of the training rows is longer than five")
    recipe = load_recipe(None, [], {"model": "-", "output": "-"})
    asked = Rows(rows, form, (), "rows", TASKS["jsonl"].protocols[form])
    limit = answer_limit(asked, recipe, byte_tokenizer(), "decoder", None)
    assert limit == max(32, math.ceil(1.1 * tokens))
    assert choose_metric("contains", rows, form).reason == ""


@pytest.mark.parametrize(
    ("metric", "form", "said"),
    [
        ("rouge", "prompt", "take loss, exact_match, contains, rougeL, chrf or FILE.py:function"),
        ("exact_match", "label", "take accuracy, balanced_accuracy, macro_f1"),
        ("my.py:score", "label", "does not score label rows"),
        ("loss", "score", "take mae"),
    ],
)
def test_a_metric_that_rows_cannot_be_scored_by_is_refused_with_those_that_they_can(
    metric, form, said
):
    refused(f"metric='{metric}' .*{said}", lambda: choose_metric(metric, [], form))


def test_rouge_and_chrf_are_those_of_their_libraries_for_each_row():
    row, answer = (
        {"prompt": "p", "response": "The lamp stands by the door."},
        "A lamp stands there.",
    )
    expected = RougeScorer(["rougeL"], use_stemmer=True).score(row["response"], answer)["rougeL"]
    assert row_value("rougeL")(answer, row) == 100 * expected.fmeasure > 0
    assert row_value("chrf")(answer, row) == sentence_chrf(answer, [row["response"]]).score > 0
    assert row_value("loss") is row_value("exact_match") is None


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "my.py"
    path.write_text(
        "def words(prompt, response, answer, row):\n"
        "    assert row['id'] == 7\n"
        "    return len(set(answer.split()) & {prompt, response})\n"
        "def nothing(prompt, response, answer, row): return None\n"
        "def endless(prompt, response, answer, row): return float('inf')\n"
        "number = 3\n"
    )
    return path


def test_a_users_function_sees_prompt_response_answer_and_row(mine):
    value = row_value(f"{mine}:words")
    assert value("b a c", {"prompt": "a", "response": "b", "id": 7}) == 2.0
    asked = {"messages": [turn("user", "a"), turn("assistant", "b")], "id": 7}
    assert value("a a", asked) == 1.0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my.py:none", r"my\.py:none cannot be loaded: KeyError\('none'\)"),
        ("my.py:number", "failed for 'b': TypeError"),
        ("my.py:words", r"metric=.*my\.py:words failed for 'b': KeyError\('id'\)"),
        ("my.py:nothing", "failed for 'b': TypeError"),
        ("my.py:endless", "gave inf for 'b': it must be finite"),
        ("broken.py:words", "cannot be loaded: SyntaxError"),
    ],
)
def test_a_fault_of_the_users_function_is_one_line_that_names_it(mine, name, said):
    (mine.parent / "broken.py").write_text("def words(:\n")
    row = {"prompt": "a", "response": "b"}
    refused(said, lambda: row_value(str(mine.parent / name))("b", row))


def test_a_function_of_no_file_is_refused_before_anything_is_trained(tmp_path):
    missing = f"{tmp_path / 'none.py'}:words"
    refused("there is no file", lambda: choose_metric(missing, [], "prompt"), FileNotFoundError)


def test_a_function_that_only_a_saved_file_names_is_not_run():
    for metric in (None, "rougeL"):
        refuse_unnamed(metric, "runs/a")
    refused("runs/a is scored by x.py:f, .*only if you name it: add --metric x.py:f",
            lambda: refuse_unnamed("x.py:f", "runs/a"))  # fmt: skip


def test_recalls_of_classes_show_what_accuracy_hides():
    rows = [{"text": "t", "label": label} for label in ["ok"] * 16 + ["fraud"] * 4]
    found = classes(["ok"] * 20, rows)
    assert found == {
        "accuracy": 80, "balanced_accuracy": 50, "macro_f1": pytest.approx(100 * (8 / 9) / 2),
        "recall_fraud": 0, "recall_ok": 100, "unfound": "0 of 4 rows of 'fraud'",
    }  # fmt: skip
    assert "unfound" not in classes(["ok"] * 16 + ["fraud"] * 4, rows)


def test_without_the_extra_there_is_the_accuracy_and_a_warning(monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.metrics", None)
    assert classes(["a"], [{"text": "t", "label": "a"}]) == {"accuracy": 100}
    assert "only the accuracy is computed: install the extra `metrics`" in caplog.text


def test_errors_of_numbers_are_in_the_unit_of_the_rows_and_what_is_undefined_is_none():
    rows = [{"text": "t", "score": score} for score in (1000, 3000, 5000)]
    found = numbers([1000.0, 2000.0, 4000.0], rows)
    assert found["mae"] == pytest.approx(2000 / 3)
    assert found["rmse"] == pytest.approx((2e6 / 3) ** 0.5)
    assert found["r2"] == pytest.approx(1 - 2e6 / 8e6)
    assert found["pearson"] == pytest.approx(98.198, abs=1e-3)
    constant = numbers([2000.0] * 3, rows)
    assert (constant["pearson"], constant["spearman"]) == (None, None)
    assert numbers([1.0], rows[:1])["r2"] is None
