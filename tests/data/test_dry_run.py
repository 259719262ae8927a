"""A dry run counts the rows that a training would lose."""

import json

import run_place
from folders import ROWS, rows_file
from trained import run_recipe

from lorada.cli.run_commands import show_training

place = run_place.place
LLAMA = {"max_position_embeddings": 512}


def shown(place, tmp_path, capsys, model, rows, settings, *, as_json=False):
    data = str(rows_file(tmp_path / "rows.jsonl", rows))
    asked = run_recipe(settings, place, tmp_path / "run", model=model, data=data, method="lora")
    show_training(asked, as_json=as_json)
    return capsys.readouterr().out


def counts(found):
    return [found[name] for name in ("rows", "cut", "dropped", "empty", "copies")]


def test_the_dry_run_counts_rows_that_are_cut_dropped_empty_or_copies(place, tmp_path, capsys):
    long, none = {"prompt": "1 =", "response": "x" * 40}, {"prompt": "x" * 40, "response": "y"}
    rows = [ROWS[0], long, none, ROWS[1], ROWS[0], ROWS[0]]
    case = (place, tmp_path, capsys, "llama", rows, ["max_length=32"])
    assert counts(json.loads(shown(*case, as_json=True))) == [6, 1, 1, 0, 2]
    assert "rows at max_length=32: 1 cut, 1 dropped, 0 empty, 2 copies\n" in shown(*case)
    texts = [{"text": text} for text in ("abc", " ", "abc", "x" * 70)]
    found = json.loads(
        shown(place, tmp_path, capsys, "llama", texts, ["max_length=32"], as_json=True)
    )
    assert counts(found) == [4, 0, 0, 1, 1]
    labels = [
        {"text": "a", "label": "y"},
        {"text": "", "label": "n"},
        {"text": "a" * 40, "label": "n"},
    ]
    out = shown(place, tmp_path, capsys, "bert", labels, ["max_length=32"], as_json=True)
    assert counts(json.loads(out)) == [3, 1, 0, 1, 0]
