"""How rows become tokens, and the score of answers that have to be exact."""

import pytest
from folders import byte_tokenizer, rows_file

from lorada.data import tokenize
from lorada.data.metrics import exact_match
from lorada.data.task_rows import load_rows
from lorada.data.tokenize import IGNORED, EncodeOptions, encode_rows
from lorada.data.tokenize import encode as every
from lorada.training.load_recipe import load_recipe

TOKENIZER = byte_tokenizer()


def encode(row, form="prompt", tokenizer=TOKENIZER, **options):
    (encoded,) = every([row], form, tokenizer, EncodeOptions(**{"max_length": 64, **options}))
    return encoded


def read(encoded):
    """The text of what a model reads."""
    return TOKENIZER.decode(encoded.features["input_ids"])


def kept(encoded):
    """The text of the tokens that count in the loss."""
    return TOKENIZER.decode([i for i in encoded.features["labels"] if i != IGNORED])


def test_the_response_and_its_end_count_and_all_tokens_when_asked():
    row = {"prompt": "ab", "response": "cd"}
    assert (read(encode(row)), kept(encode(row))) == ("abcd<e>", "cd<e>")
    assert kept(encode(row, loss_on="all")) == "abcd<e>"


def test_rows_longer_than_the_context_are_cut_and_said_to_be():
    encoded = encode({"prompt": "abc", "response": "defgh"}, max_length=5)
    assert encoded.truncated
    assert len(encoded.features["input_ids"]) == 5
    assert encode({"prompt": "a" * 9, "response": "b"}, max_length=5) is None


def test_source_and_target_have_lengths_of_their_own():
    row = {"prompt": "abcdefgh", "response": "klmnop"}
    one = encode(row, kind="encoder_decoder", max_length=5, target_length=3)
    assert (read(one), kept(one), one.truncated) == ("abcde", "kl<e>", True)
    whole = encode(row, kind="encoder_decoder", max_length=8, target_length=7)
    assert (kept(whole), whole.truncated) == ("klmnop<e>", False)
    cut = encode(row, max_length=40, target_length=3)
    assert (read(cut), kept(cut), cut.truncated) == ("abcdefghklm", "klm", True)


@pytest.mark.parametrize("kind", ["encoder_decoder", "decoder"])
def test_an_empty_target_is_only_an_end(kind):
    assert kept(encode({"prompt": "ab", "response": ""}, kind=kind, max_length=8)) == "<e>"


def test_exact_match_forgives_white_space_at_the_ends_only():
    rows = [{"response": text} for text in ("4", "5", "12")]
    assert exact_match([" 4", "5 ", "1 2"], rows) == {"exact_match": pytest.approx(200 / 3)}


ROWS = [{"prompt": "a" * size, "response": " yes" * size} for size in range(1, 7)]


def encoded(tmp_path, rows, length=20):
    data = rows_file(tmp_path / "rows.jsonl", rows)
    recipe = load_recipe(None, [f"max_length={length}"], {"model": "-", "output": "-"})
    return encode_rows(load_rows(str(data)), recipe, byte_tokenizer(), "decoder").to_dict()


def test_texts_of_many_chunks_are_cut_as_one(tmp_path, monkeypatch):
    rows = [{"text": "ab" * (number % 9)} for number in range(40)]
    whole = encoded(tmp_path, rows)
    assert {len(ids) for ids in whole["input_ids"]} == {20}
    monkeypatch.setattr(tokenize, "CHUNK", 7)
    assert encoded(tmp_path, rows) == whole
    assert encoded(tmp_path, rows, length=19) != whole


def test_rows_that_are_cut_and_rows_that_are_left_out_are_counted(tmp_path, caplog):
    encoded(tmp_path, [{"prompt": "a" * 30, "response": "b"}, *ROWS])
    (line,) = (r.message for r in caplog.records if "left out" in r.message)
    assert "of 7 rows 3 were cut to max_length=20, 1 were left out" in line
