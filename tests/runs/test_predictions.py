"""``predictions.jsonl``: the answer, score and loss of each row that a run was scored on."""

import dataclasses
import json
import math
import shutil
from functools import partial
from itertools import chain
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F
from folders import ROWS, chats, refused, rows_file
from trained_runs import QUICK, run_recipe

from lorada.data.tokenize import document_ids
from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.runs.machine import peak_memory
from lorada.runs.result import (
    PREDICTIONS_FILE,
    Prediction,
    RowsMetrics,
    keep_scores,
    read_predictions,
    read_result,
    write_predictions,
    write_result,
)
from lorada.training.train import train

TRAINING = [
    *QUICK, "max_steps=2", "max_length=48", "max_new_tokens=4", "save_strategy=no",
    "eval_batch_size=3",
]  # fmt: skip
recipe = partial(run_recipe, TRAINING, method="lora")
CHATS = chats(*((row["prompt"], row["response"]) for row in ROWS[:7]))
FORMS = {
    "prompt": ("llama", ROWS[:7]),
    "written by an encoder–decoder": ("bart", ROWS[:7]),
    "messages": ("llama", CHATS),
    "label": ("bert", [{"text": "ab" * (n % 4 + 1), "label": "xyz"[n % 3]} for n in range(7)]),
    "score": ("bert", [{"text": "ab" * (n % 4 + 1), "score": n / 2} for n in range(7)]),
    "choice": (
        "llama",
        [{"prompt": f"{n}?", "candidates": [" a", " no", " c"], "answer": n % 3} for n in range(7)],
    ),
    "text": ("llama", [{"text": "Let x be a number. " * 6}, {"text": "Then x + 1 is another."}]),
}


@pytest.fixture(scope="module", params=FORMS)
def scored(request, place):
    """A run of each form with its scores and predictions."""
    model, rows = FORMS[request.param]
    folder = place / request.param.replace(" ", "-")
    file = rows_file(place / f"{folder.name}.jsonl", rows)
    asked = recipe(place, folder, model=model, data=str(file))
    run = load_run(train(asked, quiet=True).run)
    return run, str(file), rows, evaluate(run, str(file))


@pytest.fixture(scope="module")
def finished(place):
    """A run on prompts that has not been scored; copy it before changing it."""
    return train(recipe(place, place / "finished", rows="rows"), quiet=True).run


def test_the_peak_of_memory_is_in_bytes(tmp_path, monkeypatch):
    status = tmp_path / "status"
    status.write_text("VmPeak:\t  9000 kB\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n")
    monkeypatch.setattr("lorada.runs.machine.Path", lambda name: status)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert peak_memory() == 2 * 2**20


def test_the_mean_of_the_scores_is_the_metric_for_every_form(scored):
    run, file, rows, metrics = scored
    lines = read_predictions(run.folder)
    assert {line.rows for line in lines} == {file} == set(read_result(run.folder).metrics)
    assert [line.row for line in lines] == list(range(1, len(lines) + 1))
    mean = fmean(line.score for line in lines)
    if run.form == "text":
        assert math.exp(-mean) == pytest.approx(metrics["perplexity"])
        return
    assert len(lines) == len(rows)
    if run.form == "score":
        right = [row["score"] for row in rows]
        errors = [abs(line.answer - b) for line, b in zip(lines, right, strict=True)]
        assert mean == pytest.approx(-fmean(errors)) == pytest.approx(-metrics["mae"])
    else:
        assert mean == metrics["accuracy" if "accuracy" in metrics else "exact_match"]
    stored = {name for line in lines for name in line.metrics}
    assert all(metrics[name] == pytest.approx(fmean(line.metrics[name] for line in lines))
               for name in stored)  # fmt: skip


def only(*forms):
    """The test is for these entries of FORMS."""
    return pytest.mark.parametrize("scored", forms, indirect=True)


# The metrics of choices have no loss, and windows cannot be scored alone.
@only(*(form for form in FORMS if form not in ("choice", "text")))
def test_the_loss_of_each_row_is_that_of_the_row_scored_alone(scored, tmp_path):
    run, _, rows, metrics = scored
    losses = [line.loss for line in read_predictions(run.folder)]
    if run.form in ("label", "score"):
        assert metrics["loss"] == pytest.approx(fmean(losses))
    copy = shutil.copytree(run.folder, tmp_path / "run")
    alone = load_run(copy)
    each = [
        evaluate(alone, str(rows_file(tmp_path / f"{n}.jsonl", [row])))["loss"]
        for n, row in enumerate(rows)
    ]
    assert losses == pytest.approx(each, rel=1e-4)


@only("choice")
def test_the_loss_of_a_choice_is_what_training_takes(scored):
    run, _, rows, metrics = scored
    assert "loss" not in metrics
    for line, row in zip(read_predictions(run.folder), rows, strict=True):
        means = []
        for candidate in row["candidates"]:
            prompt, whole = (
                run.tokenizer(text)["input_ids"]
                for text in (row["prompt"], row["prompt"] + candidate)
            )
            with torch.no_grad():
                log_p = run.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            positions = range(len(prompt), len(whole))
            means.append(fmean(float(log_p[t - 1, whole[t]]) for t in positions))
        expected = F.cross_entropy(torch.tensor([means]), torch.tensor([row["answer"]]))
        assert line.loss == pytest.approx(float(expected), rel=1e-4)


@only("text")
@torch.no_grad()
def test_all_of_a_text_is_scored_in_joined_windows(scored):
    run, _, rows, metrics = scored
    length = run.recipe.max_length
    joined = [*chain(*(document_ids(row, run.tokenizer) for row in rows))]
    assert len(joined) % length > 1
    total = predicted = 0.0
    for start in range(0, len(joined), length):
        window = torch.tensor([joined[start : start + length]])
        log_p = run.model(input_ids=window).logits[:, :-1].log_softmax(-1)
        total -= float(log_p.gather(-1, window[:, 1:, None]).sum())
        predicted += window.shape[1] - 1
    assert metrics["perplexity"] == pytest.approx(math.exp(total / predicted), rel=1e-5)
    assert metrics["n"] == -(-len(joined) // length) > len(rows)
    assert metrics["n"] == len(read_predictions(run.folder))


def test_scoring_with_text_adds_what_was_asked_and_the_right_answer(scored, tmp_path):
    run, file, rows, _ = scored
    before = (run.folder / PREDICTIONS_FILE).read_bytes()
    assert not any({"text", "right"} & each.model_fields_set
                   for each in read_predictions(run.folder))  # fmt: skip
    evaluate(run, file, with_text=True)
    lines = read_predictions(run.folder)
    if run.form == "text":  # windows have no text of their own, and no right answer
        assert (run.folder / PREDICTIONS_FILE).read_bytes() == before
        return
    first, row = lines[0], rows[0]
    right = row.get("label", row.get("score", ROWS[0]["response"]))
    asked = row.get("text", ROWS[0]["prompt"])
    if run.form == "choice":
        asked, right = "0?\n0:  a\n1:  no\n2:  c", 0
    elif run.form == "messages":
        asked = "<|user|>0 + 0 =<e><|assistant|>"
    assert (first.text, first.right) == (asked, right)
    evaluate(run, file)
    assert (run.folder / PREDICTIONS_FILE).read_bytes() == before


@pytest.fixture
def copied(finished, tmp_path):
    return load_run(shutil.copytree(finished, tmp_path / "run"))


def test_the_base_and_each_set_of_rows_keep_lines_of_their_own(copied, tmp_path):
    one, two = (
        str(rows_file(tmp_path / f"{name}.jsonl", ROWS[start:stop]))
        for name, start, stop in (("one", 0, 4), ("two", 4, 9))
    )
    assert read_predictions(copied.folder) == []  # it was never scored
    given = ((one, False), (two, False), (one, True), (two, False))
    losses = [evaluate(copied, file, base=base)["loss"] for file, base in given]
    assert losses[0] < losses[2]  # the base's own
    assert losses[1] == losses[3]
    lines = read_predictions(copied.folder)
    names = [line.rows for line in lines]
    assert names == [one] * 4 + [two] * 5 + [f"{one} (base)"] * 4
    assert set(names) == set(read_result(copied.folder).metrics)


def test_a_file_has_one_name_however_it_is_typed(copied, tmp_path, monkeypatch):
    rows_file(tmp_path / "one.jsonl", ROWS[:2])
    rows_file(tmp_path / "mine.jsonl", ROWS[2:4])
    (tmp_path / "in").mkdir()
    mine = copied.recipe.model_copy(update={"eval_data": str(tmp_path / "mine.jsonl")})
    run = dataclasses.replace(copied, recipe=mine)
    before = set(read_result(run.folder).metrics)
    monkeypatch.chdir(tmp_path)
    for file in ("one.jsonl", "in/../one.jsonl", str(tmp_path / "one.jsonl"), "mine.jsonl", None):
        assert evaluate(run, file)["n"] == 2
    evaluate(run, "one.jsonl", base=True)
    one, own = str(tmp_path / "one.jsonl"), mine.eval_data
    names = {one, own, f"{one} (base)"}
    assert set(read_result(run.folder).metrics) - before == names
    assert {line.rows for line in read_predictions(run.folder)} - before == names


def test_lines_have_the_rows_own_numbers_where_only_some_rows_are_scored(place, copied, tmp_path):
    saved = copied.folder / "recipe.yaml"
    saved.write_text(saved.read_text().replace("eval_rows: null", "eval_rows: 6"))
    run = load_run(copied.folder)
    evaluate(run, str(place / "rows.jsonl"), with_text=True)
    lines = read_predictions(run.folder)
    numbers = [line.row for line in lines]
    assert len(numbers) == 6
    assert numbers == sorted(set(numbers))
    assert numbers != [1, 2, 3, 4, 5, 6]
    assert [line.text for line in lines] == [ROWS[n - 1]["prompt"] for n in numbers]


def test_a_row_that_is_too_long_is_answered_and_has_the_loss_of_its_whole_answer(
    copied, tmp_path, caplog
):
    rows = [ROWS[0], {"prompt": "1" * 200, "response": " 2"}, *ROWS[1:3]]
    metrics = evaluate(copied, str(rows_file(tmp_path / "long.jsonl", rows)))
    assert "1 of 4 prompts lost their middle" in caplog.text
    whole = read_predictions(copied.folder)
    assert [line.row for line in whole] == [1, 2, 3, 4]
    assert all(isinstance(line.answer, str) for line in whole)
    losses = [line.loss for line in whole]
    assert metrics["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


DAMAGE = {
    "cut off": lambda text: text[: len(text) // 2],
    "another type": lambda text: text.replace('"row": 3', '"row": "3"'),
    "a field that is missing": lambda text: text.replace('"score"', '"points"'),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_one_line_before_anything_is_scored(copied, place, case, monkeypatch):
    evaluate(copied, str(place / "rows.jsonl"))
    path = copied.folder / PREDICTIONS_FILE
    path.write_text(DAMAGE[case](path.read_text()))
    damaged = path.read_bytes()
    monkeypatch.setattr(copied.model, "forward", lambda **_: pytest.fail("it was scored"))
    said = r"predictions\.jsonl line \d+ is damaged.*score the run again"
    refused(said, lambda: evaluate(copied, str(place / "rows.jsonl")))
    assert path.read_bytes() == damaged


def test_odd_texts_and_numbers_come_back_as_they_were(tmp_path):
    texts = ["a\u2028b", "c\nd\r", '"\\', "ăâ", "\x00\x1c", ""]
    prediction = partial(Prediction, rows="ä (base)")
    lines = [prediction(row=n, answer=t, score=0.1, loss=2 / 3) for n, t in enumerate(texts, 1)]
    lines += [prediction(row=7, answer=3, score=1.0, loss=None)]
    write_predictions(tmp_path, "ä (base)", lines)
    assert read_predictions(tmp_path) == lines
    assert isinstance(read_predictions(tmp_path)[6].answer, int)
    nan = prediction(row=1, answer=math.nan, score=-math.inf, loss=math.nan)
    write_predictions(tmp_path, "ä (base)", [nan, nan])
    for line in (tmp_path / PREDICTIONS_FILE).read_text().splitlines():
        assert json.loads(line)["score"] is None


def test_scoring_again_keeps_what_others_have_written_and_the_order_of_all_keys(copied, place):
    path = copied.folder / "result.json"
    evaluate(copied, str(place / "rows.jsonl"))
    stored = json.loads(path.read_text())
    recipe = {"note": [1, {"a": None}], **stored["recipe"]}
    stored = {"note": "mine", **stored, "recipe": recipe, "last": 2}
    (metrics,) = stored["metrics"].values()
    metrics |= {"exact_match": 100, "note": "of these rows"}
    path.write_text(json.dumps(stored, indent=2) + "\n")
    result = read_result(copied.folder)
    write_result(copied.folder, result)
    assert path.read_text() == json.dumps(stored, indent=2) + "\n"
    keep_scores(copied.folder, {"other": RowsMetrics(n=1, loss=0.5)})
    stored["metrics"]["other"] = {"n": 1, "loss": 0.5}
    assert path.read_text() == json.dumps(stored, indent=2) + "\n"
