"""Tokens of large sets of rows are made once, and again when anything they depend on changes."""

import logging

import datasets
import pytest
from folders import byte_tokenizer, llama_folder, rows_file

from lorada.run import encoding, token_cache
from lorada.run.data import load_rows
from lorada.run.encoding import encode_rows
from lorada.run.recipe import load_recipe

ROWS = [{"prompt": "a" * size, "response": " yes" * size} for size in range(1, 7)]


@pytest.fixture(autouse=True)
def made(monkeypatch, tmp_path):
    """How often rows were encoded; caches go to a folder of the test."""
    count, encode = [], encoding.encode

    def counted(*args):
        count.append(0)
        return encode(*args)

    monkeypatch.setattr(encoding, "encode", counted)
    monkeypatch.setattr(token_cache, "LEAST", len(ROWS))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return count


def encoded(tmp_path, *overrides, rows=ROWS, tokenizer=None):
    data = rows_file(tmp_path / "rows.jsonl", rows)
    recipe = load_recipe(
        None, ["max_length=20", *overrides],
        {"model": str(llama_folder(tmp_path / "llama")), "data": str(data), "output": "run"},
    )  # fmt: skip
    held = load_rows(recipe.data, None, None)
    return encode_rows(held, recipe, tokenizer or byte_tokenizer(), "decoder")


def test_the_same_rows_are_encoded_once_and_what_was_cut_is_said_each_time(tmp_path, made, caplog):
    with caplog.at_level(logging.WARNING):
        first, second = encoded(tmp_path), encoded(tmp_path)
    assert len(made) == 1
    assert first.to_dict() == second.to_dict()
    assert len([r for r in caplog.records if "were cut" in r.message]) == 2


@pytest.mark.parametrize("change", ["max_length=19", "loss_on=all", "rows", "tokenizer"])
def test_anything_that_changes_the_ids_encodes_anew(change, tmp_path, made):
    encoded(tmp_path)
    if change == "rows":
        encoded(tmp_path, rows=[*ROWS[1:], {"prompt": "b", "response": "c"}])
    elif change == "tokenizer":
        other = byte_tokenizer()
        other.add_tokens(["aa"])
        encoded(tmp_path, tokenizer=other)
    else:
        encoded(tmp_path, change)
    assert len(made) == 2


def test_few_rows_are_not_kept(tmp_path, made):
    encoded(tmp_path, rows=ROWS[1:])
    encoded(tmp_path, rows=ROWS[1:])
    assert len(made) == 2
    assert not (tmp_path / "cache").exists()


def test_half_a_cache_is_made_whole(tmp_path, made):
    first = encoded(tmp_path)
    (folder,) = (tmp_path / "cache" / "lorada").iterdir()
    next(folder.glob("*.arrow")).write_bytes(b"half")
    assert encoded(tmp_path).to_dict() == first.to_dict()
    assert encoded(tmp_path).to_dict() == first.to_dict()
    assert len(made) == 2


def test_a_full_disk_is_no_reason_to_stop(tmp_path, made, monkeypatch, caplog):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_cache, "written_whole", full)
    with caplog.at_level(logging.WARNING):
        assert len(encoded(tmp_path)) > 0
    assert "could not be kept" in caplog.text
