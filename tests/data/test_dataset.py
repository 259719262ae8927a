"""Rows become a dataset of token ids, chunk by chunk, and what was cut or left out is said."""

from folders import byte_tokenizer, rows_file

from lorada.data import dataset
from lorada.data.dataset import encode_rows
from lorada.data.task_rows import load_rows
from lorada.training.load_recipe import load_recipe

ROWS = [{"prompt": "a" * size, "response": " yes" * size} for size in range(1, 7)]


def encoded(tmp_path, rows, length=20):
    data = rows_file(tmp_path / "rows.jsonl", rows)
    recipe = load_recipe(None, [f"max_length={length}"], {"model": "-", "output": "-"})
    return encode_rows(load_rows(str(data)), recipe, byte_tokenizer(), "decoder").to_dict()


def test_texts_of_many_chunks_are_cut_as_one(tmp_path, monkeypatch):
    rows = [{"text": "ab" * (number % 9)} for number in range(40)]
    whole = encoded(tmp_path, rows)
    assert {len(ids) for ids in whole["input_ids"]} == {20}
    monkeypatch.setattr(dataset, "CHUNK", 7)
    assert encoded(tmp_path, rows) == whole
    assert encoded(tmp_path, rows, length=19) != whole


def test_rows_that_are_cut_and_rows_that_are_left_out_are_counted(tmp_path, caplog):
    encoded(tmp_path, [{"prompt": "a" * 30, "response": "b"}, *ROWS])
    (line,) = (r.message for r in caplog.records if "left out" in r.message)
    assert "3 of 7 rows were cut to max_length=20, 1 more were left out" in line
