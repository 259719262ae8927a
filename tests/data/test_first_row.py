"""A dry run shows the first row as the model reads it, with the tokens that count marked."""

import json

import pytest
from folders import ROWS, TURNS, refused, rows_file
from trained_runs import run_recipe

from lorada.cli.train_commands import show_training

CHOICE = {"prompt": "1 + 1 =", "candidates": [" 3", " 2"], "answer": 1}
READ = {
    "a prompt": ("llama", ROWS[0], [], "0 + 0 =⟦ 0<e>⟧", 3),
    "all of a prompt": ("llama", ROWS[0], ["loss_on=all"], "0⟦ + 0 = 0<e>⟧", 9),
    "a prompt that is cut": ("llama", ROWS[0], ["max_length=8"], "0 0 =⟦ 0<e>⟧", 3),
    "a chat": ("llama", TURNS[0], [], "<|user|>hi<e><|assistant|>⟦ho<e>⟧", 3),
    "a text": ("llama", {"text": "abc"}, [], "a⟦bc<e>abc<e>⟧", 7),
    "a choice": ("llama", CHOICE, [], "1 + 1 =⟦ 2⟧", 2),
    "a class": ("bert", {"text": "abc", "label": "yes"}, [], "the head learns 'yes':\nabc", 0),
    "a number": ("bert", {"text": "abc", "score": 2}, [], "the head learns 2.0:\nabc", 0),
    "a sequence": ("bart", ROWS[0], [], "0 + 0 =⟦ 0<e>⟧", 3),
}  # fmt: skip


def shown(place, tmp_path, capsys, model, rows, settings, *, as_json=False):
    data = str(rows_file(tmp_path / "rows.jsonl", rows))
    asked = run_recipe(settings, place, tmp_path / "run", model=model, data=data, method="lora")
    show_training(asked, as_json=as_json)
    return capsys.readouterr().out


@pytest.mark.parametrize("case", READ)
def test_the_first_row_is_shown_as_it_is_read(case, place, tmp_path, capsys):
    model, row, settings, expected, counted = READ[case]
    other = dict(row)
    if "label" in row:
        other["label"] = "no"
    if "score" in row:
        other["score"] = 3
    out = shown(place, tmp_path, capsys, model, [row, other], settings)
    assert f"{expected}\n" in out
    said = f"the {counted} between ⟦ and ⟧ count in the loss"
    assert (said in out) == (counted > 0)
    what = "the first window" if case == "a text" else "row 1"
    assert f"{what} as the model reads it" in out


def counts(found):
    return [found[name] for name in ("rows", "cut", "dropped", "empty", "copies")]


def test_the_dry_run_counts_rows_that_are_cut_dropped_empty_or_copies(place, tmp_path, capsys):
    def planned(model, rows):
        out = shown(place, tmp_path, capsys, model, rows, ["max_length=32"], as_json=True)
        return json.loads(out)

    long, none = {"prompt": "1 =", "response": "x" * 40}, {"prompt": "x" * 40, "response": "y"}
    rows = [none, ROWS[0], long, ROWS[1], ROWS[0], ROWS[0]]
    found = planned("llama", rows)
    assert counts(found) == [6, 2, 0, 0, 2]
    assert [found["lengths"][name] for name in ("longest", "answers_cut")] == [44, 1]
    row = found["first_row"]
    assert (row["row"], row["tokens"], row["counted"]) == (1, 32, 2)
    assert row["pieces"] == [["x" * 30, False], ["y<e>", True]]
    out = shown(place, tmp_path, capsys, "llama", rows, ["max_length=32"])
    assert "rows at max_length=32: 2 cut, 0 dropped, 0 empty, 2 copies\n" in out
    assert "tokens of these rows: 10 to 44, half of them 10 or less" in out
    assert "max_length=44 takes every row whole" in out
    texts = [{"text": text} for text in ("abc", " ", "abc", "x" * 70)]
    assert counts(planned("llama", texts)) == [4, 0, 0, 1, 1]
    assert counts(planned("llama", [{"prompt": "1", "response": " "}])) == [1, 0, 0, 1, 0]
    labels = [{"text": t, "label": name} for t, name in (("a", "y"), ("", "n"), ("a" * 40, "n"))]
    assert counts(planned("bert", labels)) == [3, 1, 0, 1, 0]


def test_the_dry_run_refuses_what_the_training_refuses(place, tmp_path, capsys):
    rows = [{"text": "a", "label": "yes"}] * 3
    refused("only the label 'yes'", lambda: shown(place, tmp_path, capsys, "bert", rows, []))
    refused("no row to learn from",
            lambda: shown(place, tmp_path, capsys, "llama", ROWS, ["max_length=1"]))  # fmt: skip


def test_the_dry_run_says_how_long_rows_are_and_what_held_out_rows_lose(place, tmp_path, capsys):
    held_out = rows_file(tmp_path / "held_out.jsonl", [{"prompt": "x" * 70, "response": "y"}])
    settings = ["max_length=32", f"eval_data={held_out}"]
    out = shown(place, tmp_path, capsys, "llama", ROWS[:4], settings)
    assert "tokens of these rows: 10 to 10, half of them 10 or less" in out
    assert "1 held-out row at max_length=32: 1 cut" in out
    said = "1 is cut to max_length=32; the longest has 72 tokens and the model reads 64"
    assert f"of these rows {said}: max_length=64 cuts the least" in out
    found = json.loads(shown(place, tmp_path, capsys, "llama", ROWS[:4], settings, as_json=True))
    assert found["held_out_lengths"]["longest"] == 72
