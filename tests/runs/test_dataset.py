"""Tokens of large sets of rows are made once, and again when what they depend on changes."""

import logging
import os
import subprocess
import sys

import datasets
import pytest
from folders import CHAT, byte_tokenizer, llama_folder, rows_file
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lorada.runs.data import dataset
from lorada.runs.data.dataset import encode_rows
from lorada.runs.data.rows import load_rows
from lorada.runs.recipe import load_recipe

ROWS = [{"prompt": "a" * size, "response": " yes" * size} for size in range(1, 7)]
CHATS = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * size}]}
    for size in range(1, 7)
]
DATED = "{{ strftime_now('%d %b %Y') }}" + CHAT


@pytest.fixture(autouse=True)
def made(monkeypatch, tmp_path):
    """How often rows were encoded; caches go to a folder of the test."""
    count, encode = [], dataset.encode

    def counted(rows, *args):
        count.extend([0] if rows else [])
        return encode(rows, *args)

    monkeypatch.setattr(dataset, "encode", counted)
    monkeypatch.setattr(dataset, "LEAST", sum(len(text) for row in ROWS for text in row.values()))
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


CHANGES = [
    "max_length=19", "loss_on=all", "rows", "tokenizer", "split_special_tokens", "init_kwargs",
    "lorada", "transformers", "tokenizers", "code",
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_anything_that_changes_the_ids_encodes_anew(change, tmp_path, made, monkeypatch):
    encoded(tmp_path)
    other = byte_tokenizer()
    if change == "rows":
        encoded(tmp_path, rows=[*ROWS[1:], {"prompt": "b", "response": " yes"}])
    elif change == "tokenizer":
        other.add_tokens(["aa"])
        encoded(tmp_path, tokenizer=other)
    elif change == "split_special_tokens":
        other.split_special_tokens = True
        encoded(tmp_path, tokenizer=other)
    elif change == "init_kwargs":
        other.init_kwargs["legacy_behaviour"] = True
        encoded(tmp_path, tokenizer=other)
    elif change == "code":
        monkeypatch.setattr(dataset, "CODE", b"other")
        encoded(tmp_path)
    elif "=" in change:
        encoded(tmp_path, change)
    else:
        module = dataset if change == "lorada" else getattr(dataset, change)
        monkeypatch.setattr(module, "__version__", "0.0.0")
        encoded(tmp_path)
    assert len(made) == 2


HASH = """import sys
from transformers import AutoTokenizer
from lorada.runs.data.dataset import _fingerprint
from lorada.runs.data.rows import load_rows
from lorada.tasks.tokenize import EncodeOptions
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
if sys.argv[3]:
    tokenizer(["a", "bc"], padding=True, truncation=True, max_length=1)
print(_fingerprint(load_rows(sys.argv[2]), tokenizer, EncodeOptions(20, labels=("a", "b"))))
"""


def test_other_processes_find_the_tokens_whatever_their_tokenizer_did_before(tmp_path):
    data, folder = rows_file(tmp_path / "rows.jsonl", ROWS), llama_folder(tmp_path / "llama")
    found = [
        subprocess.run(
            [sys.executable, "-c", HASH, str(folder), str(data), used],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed, used in (("1", ""), ("2", "used"))
    ]  # fmt: skip
    assert found[0] == found[1] != "None\n"


@pytest.mark.parametrize("dated", [False, True], ids=["plain", "dated"])
def test_what_a_template_writes_about_today_is_not_kept(dated, tmp_path, made):
    tokenizer = byte_tokenizer()
    if dated:
        tokenizer.chat_template = DATED
    for _ in range(2):
        encoded(tmp_path, "max_length=60", rows=CHATS, tokenizer=tokenizer)
    assert len(made) == 1 + dated


def test_a_template_with_a_date_that_no_row_uses_is_no_obstacle(tmp_path, made):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = DATED
    for _ in range(2):
        encoded(tmp_path, tokenizer=tokenizer)
    assert len(made) == 1


class OwnTokenizer(PreTrainedTokenizerFast):
    """As a model's repository may ship one; its module is not one of transformers."""


class OwnSplitter:
    def pre_tokenize(self, text):
        text.split(lambda number, part: [part])


def own_class():
    plain = byte_tokenizer()
    return OwnTokenizer(
        tokenizer_object=plain.backend_tokenizer, pad_token="<p>", bos_token="<s>", eos_token="<e>"
    )


def own_part():
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(OwnSplitter())
    return tokenizer


@pytest.mark.parametrize("build", [own_class, own_part])
def test_tokens_of_a_tokenizer_that_is_not_all_shown_are_not_kept(build, tmp_path, made):
    tokenizer = build()
    for _ in range(2):
        encoded(tmp_path, tokenizer=tokenizer)
    assert len(made) == 2
    assert not (tmp_path / "cache").exists()


def test_few_characters_are_not_kept(tmp_path, made):
    encoded(tmp_path, rows=ROWS[1:])
    encoded(tmp_path, rows=ROWS[1:])
    assert len(made) == 2
    assert not (tmp_path / "cache").exists()


def test_few_long_rows_are_kept(tmp_path, monkeypatch):
    rows = [{"text": "a" * dataset.LEAST}]
    first = encoded(tmp_path, rows=rows)
    monkeypatch.setattr(dataset, "Windows", lambda *args: None)
    assert encoded(tmp_path, rows=rows).to_dict() == first.to_dict()


def test_texts_of_many_chunks_are_cut_as_one(tmp_path, monkeypatch):
    rows = [{"text": "ab" * (number % 9)} for number in range(40)]
    whole = encoded(tmp_path, rows=rows)
    monkeypatch.setattr(dataset, "CHUNK", 7)
    assert encoded(tmp_path, "max_length=19", rows=rows).to_dict() != whole.to_dict()
    monkeypatch.setattr(dataset, "LEAST", 10**6)  # made again
    assert encoded(tmp_path, rows=rows).to_dict() == whole.to_dict()


def test_rows_that_are_left_out_are_said_the_same_from_the_cache(tmp_path, made, caplog):
    rows = [{"prompt": "a" * 30, "response": "b"}, *ROWS]
    for _ in range(2):
        encoded(tmp_path, rows=rows)
    lines = [r.message for r in caplog.records if "left out" in r.message]
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert "3 of 7 rows were cut to max_length=20, 1 more were left out" in lines[0]


def test_half_a_cache_is_made_whole(tmp_path, made):
    first = encoded(tmp_path).to_dict()
    (path,) = (tmp_path / "cache" / "lorada").glob("*.arrow")
    path.write_bytes(path.read_bytes()[:300])
    for _ in range(3):
        assert encoded(tmp_path).to_dict() == first
    assert len(made) == 3  # at first, in place of the half, and for the cache again


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(tmp_path, monkeypatch, caplog):
    place = tmp_path / "file"
    place.write_text("not a folder")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place)
    assert len(encoded(tmp_path)) == len(ROWS)
    assert "rows.jsonl are not kept in " in caplog.text
    assert place.read_text() == "not a folder"
