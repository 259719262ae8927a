"""Rows of a user's own from a file to an answer: columns, a held-out share, types of labels."""

import json
import sys

import pytest
from folders import bert_folder, llama_folder, rows_file
from programs import printed

from lorada.cli.train_commands import _read_draft
from lorada.compare.spec import saved_comparison
from lorada.compare.stored_plan import saved_plan
from lorada.compare.trainings import comparison_jobs
from lorada.data.files.read_rows import read_rows
from lorada.data.rows.held_out_share import draw_held_out
from lorada.data.rows.training_rows import training_rows

SETTINGS = ["max_steps=2", "max_length=16", "report_to=[]"]
COLUMNS = "text=My review,label=Stars"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("own_rows")
    bert_folder(place / "bert")
    llama_folder(place / "llama")
    lines = [f"{'good' if i % 4 else 'bad'} film {i};{int(bool(i % 4))}" for i in range(40)]
    (place / "reviews.csv").write_text("\n".join(["My review;Stars", *lines, ""]))
    rows_file(place / "a.jsonl", [{"text": f"a {i}", "label": i % 2} for i in range(12)])
    rows_file(place / "b.jsonl", [{"text": f"b {i}", "label": i % 2} for i in range(8)])
    return place


@pytest.fixture
def train(works, place, tmp_path):
    def run(data, *words, model="bert"):
        model = ["--method", "lora", "--model", place / model, "--output", tmp_path / "run"]
        return works("train", *model, "--data", data, *SETTINGS, *words)

    return run


@pytest.mark.more
def test_columns_are_read_by_every_command_and_a_run_remembers_its_own(
    train, works, json_of, mistake, place, tmp_path
):
    data, run = place / "reviews.csv", tmp_path / "run"
    train(data, "--columns", COLUMNS)
    assert json_of("evaluate", run, "--data", data)["n"] == 40
    answers = json_of("predict", run, "--data", data)
    assert len(answers) == 40
    assert {type(answer["label"]) for answer in answers} == {str}  # a table holds texts
    plain = rows_file(tmp_path / "plain.jsonl", [{"text": "good", "label": "1"}] * 2)
    assert json_of("evaluate", run, "--data", plain)["n"] == 2
    other = rows_file(tmp_path / "other.jsonl", [{"words": "good", "is": "1"}] * 3)
    assert "row 1 has fields words, is" in mistake("evaluate", run, "--data", other)
    named = ["--data", other, "--columns", "text=words,label=is"]
    assert json_of("evaluate", run, *named)["n"] == 3
    assert len(json_of("predict", run, *named)) == 3
    assert "columns names 'word', and" in mistake(
        "predict", run, "--data", other, "--columns", "text=word"
    )
    words = ["--methods", "lora", "--model", place / "bert", "--output", tmp_path / "all"]
    found = json_of(
        "compare", *words, "--data", data, "--held-out", "20%", "--columns", COLUMNS,
        "--trials", 0, "--dry-run", *SETTINGS,
    )  # fmt: skip
    assert found["candidates"][0]["reason"] is None


@pytest.mark.parametrize("typed", ["text", "text=", "=a", "text=a,,label=b"])
def test_columns_that_are_no_pairs_are_refused(typed, mistake, tmp_path):
    said = mistake("train", "--data", "rows.csv", "--columns", typed)
    assert f"{typed} must be such as text=review,label=sentiment" in said


@pytest.mark.more
def test_a_share_is_held_out_said_scored_and_drawn_again_in_another_process(
    train, json_of, mistake, place, tmp_path, caplog
):
    data, run = tmp_path / "reviews.csv", tmp_path / "run"
    data.write_text((place / "reviews.csv").read_text())
    train(data, "--columns", COLUMNS, "eval_data=20%", "eval_seed=1")
    said = f"{data}: 32 rows to learn (0: 8, 1: 24), 8 held out (eval_data=20%, eval_seed=1)"
    assert said in caplog.messages
    before = json_of("evaluate", run)
    rows = [{"text": row["My review"], "label": row["Stars"]} for row in read_rows(data)]
    expected = [index + 1 for index in draw_held_out(rows, 0.2, 1)]
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines if "row" in line] == expected
    again = printed(sys.executable, "-m", "lorada.cli", "evaluate", run, "--json")
    assert json.loads(again) == before
    data.write_text(data.read_text().replace("film 1;", "movie 1;"))
    refusal = mistake("evaluate", run)
    assert f"{data} has other rows than at the training, so 20% of them may have been" in refusal
    assert json_of("evaluate", run, "--data", data)["n"] == 40


@pytest.mark.more
def test_a_comparison_never_learns_the_share_that_it_scores(works, place, tmp_path):
    words = ["--methods", "lora,ia3", "--model", place / "bert", "--output", tmp_path / "all"]
    rows = ["--data", f"{place}/a.jsonl,{place}/b.jsonl", "--held-out", "20%"]
    works("compare", *words, *rows, "--seeds", "1,2", "--trials", 2, *SETTINGS)
    chosen, plan = saved_comparison(tmp_path / "all"), saved_plan(tmp_path / "all")
    assert plan.held_out["20%"].rows == 4
    shared = training_rows(chosen.run_recipe("lora", "-"), "encoder")[1].rows
    texts = {row["text"] for row in shared}
    jobs = comparison_jobs(chosen, plan, tmp_path / "all")
    recipes = [one for job in jobs for arg in job.work.args for one in getattr(arg, "recipes", ())]
    assert {recipe.dev_rows for recipe in recipes} == {0, 8}
    for recipe in recipes:
        learned, measured = training_rows(recipe, "encoder")
        seen = [row["text"] for row in learned.rows]
        assert not texts & set(seen)
        assert len(seen) == 16 - recipe.dev_rows
        assert (texts == {row["text"] for row in measured.rows}) == (not recipe.dev_rows)


@pytest.mark.more
def test_classes_that_were_integers_are_answered_by_their_names(train, json_of, place, tmp_path):
    train(f"{place}/a.jsonl,{place}/b.jsonl")
    found = json_of("predict", tmp_path / "run", "--text", "a", "--text", "b")
    assert {answer["label"] for answer in found} <= {"0", "1"}
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["data"]["file"] == "a.jsonl, b.jsonl"


def test_the_plan_of_a_training_has_the_classes(train, place, caplog):
    out, _ = train(place / "a.jsonl", "--dry-run", "--json")
    assert json.loads(out)["classes"] == {"0": 6, "1": 6}
    assert f"{place / 'a.jsonl'}: 12 rows to learn (0: 6, 1: 6)" in caplog.messages


CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def test_a_chat_that_ends_with_the_user_is_learned_and_not_scored(mistake, place, tmp_path):
    rows = [{"messages": CHAT}] * 4 + [{"messages": [*CHAT, CHAT[0]]}]
    data = rows_file(tmp_path / "chats.jsonl", rows)
    train = ["train", "--method", "lora", "--model", place / "llama", "--data"]
    said = f"{data} row 5: a chat to score must end with a turn of the assistant"
    scored = rows_file(tmp_path / "good.jsonl", rows[:4])
    assert said in mistake(*train, scored, f"eval_data={data}", "--output", tmp_path / "run")


def test_a_run_goes_on_from_inside_its_folder(tmp_path, monkeypatch):
    recipe = {"model": "minilm-l6", "data": "rows.jsonl", "output": "runs/mine"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    monkeypatch.chdir(tmp_path)
    options = {"model": None, "output": None}
    assert _read_draft(None, [], options, resume=True).recipe.output == "."
