"""What rows longer than ``max_length`` lose: the middle of what is read, and not the answer."""

import pytest
from folders import byte_tokenizer, refused, rows_file
from test_chats import SYSTEM, TEMPLATES, with_template

from lorada.data.batches import IGNORED
from lorada.data.row_lengths import EncodingLog, lengths_of
from lorada.data.rows.own_rows import load_rows
from lorada.data.tokenize import EncodeOptions, encode, encode_options, encode_rows
from lorada.training.load_recipe import load_recipe

PASSAGE = "".join(f"{number}. " for number in range(300))
QUESTION = "Which lamp is red?"


def chat(*turns):
    roles = ("user", "assistant") * len(turns)
    return {"messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]}


def encoded(row, form, **options):
    tokenizer = with_template(byte_tokenizer(), TEMPLATES["default system"])
    options = {"max_length": 300, "cut": "middle", **options}
    (found,) = encode([row], form, tokenizer, EncodeOptions(**options))
    text = tokenizer.decode(found.features["input_ids"])
    labels = [token for token in found.features["labels"] if token != IGNORED]
    return found, text, tokenizer.decode(labels)


@pytest.mark.first
@pytest.mark.parametrize("asked", [f"{PASSAGE}\n{QUESTION}", f"{QUESTION}\n{PASSAGE}"])
@pytest.mark.parametrize("form", ["prompt", "messages"])
def test_the_question_and_the_whole_answer_survive_a_passage_that_is_too_long(asked, form):
    row = chat(asked, "the third") if form == "messages" else {"prompt": asked, "response": " it"}
    found, text, learned = encoded(row, form)
    assert found.truncated
    assert not found.answer_cut
    assert QUESTION in text
    assert learned.startswith("the third" if form == "messages" else " it<e>")
    assert 280 < len(found.features["input_ids"]) <= 300 < found.length
    assert text.count(". ") < PASSAGE.count(". ")


def test_the_longest_read_text_of_a_chat_is_cut_and_short_ones_stay():
    row = chat(QUESTION, "the third", "And the fourth?", "green")
    row["messages"].insert(0, {**SYSTEM, "content": PASSAGE})
    found, text, learned = encoded(row, "messages")
    assert not found.answer_cut
    assert all(one in text for one in (QUESTION, "And the fourth?", "0. 1.", "299. "))
    assert learned == "the third<|im_end|>\ngreen<|im_end|>\n"


def test_an_encoder_decoder_reads_both_ends_of_a_long_prompt():
    row = {"prompt": f"{PASSAGE}{QUESTION}", "response": "it"}
    found, text, _ = encoded(row, "prompt", kind="encoder_decoder")
    assert text.startswith("0. 1. ")
    assert text.endswith(QUESTION)
    assert found.truncated


def test_an_answer_loses_its_end_only_beyond_half_of_the_length_and_is_counted_then():
    half, longer = "y" * 149, "y" * 200
    found, _, learned = encoded({"prompt": PASSAGE, "response": half}, "prompt")
    assert (learned, found.answer_cut) == (f"{half}<e>", False)
    found, text, learned = encoded({"prompt": PASSAGE, "response": longer}, "prompt")
    assert (len(text), learned, found.answer_cut) == (300, "y" * 150, True)
    found, _, learned = encoded(chat("hi", "z" * 400), "messages")
    assert found.answer_cut
    assert learned == "z" * len(learned)


def test_the_warning_says_the_length_that_would_do_and_what_the_model_reads(tmp_path, caplog):
    rows = [{"prompt": PASSAGE, "response": "y"}, {"prompt": "a", "response": "y" * 90}]
    path = rows_file(tmp_path / "rows.jsonl", rows)
    recipe = load_recipe(None, ["max_length=64"], {"model": "-", "output": "-"})
    loaded = load_rows(str(path))
    encode_rows(loaded, recipe, byte_tokenizer(), "decoder")
    longest = len(PASSAGE) + 2
    said = "of 2 rows 2 are cut to max_length=64, 1 of them in an answer; the longest has"
    assert f"{said} {longest:,} tokens: max_length={longest} takes every row whole" in caplog.text
    encode_rows(loaded, recipe, byte_tokenizer(), "decoder", reads=512)
    assert "and the model reads 512: max_length=512 cuts the least" in caplog.text
    encode_rows(loaded, recipe, byte_tokenizer(), "decoder", reads=64)
    assert f"the longest has {longest:,} tokens and the model reads 64\n" in caplog.text


def test_lengths_are_counted_before_rows_are_cut():
    log = EncodingLog(cut=[1], answers_cut=[], dropped=[2], empty=[], lengths=[4, 30, 90])
    found = lengths_of(log, 20, None, 512)
    assert (found.shortest, found.median, found.longest, found.whole) == (4, 30, 90, 90)
    assert found.summary == (
        "1 is cut to max_length=20, 1 is left out, as max_length=20 leaves nothing to learn; "
        "the longest has 90 tokens: max_length=90 takes every row whole"
    )
    assert lengths_of(EncodingLog(lengths=[4]), 20, None, None).summary == ""


def test_rows_of_a_benchmark_are_cut_at_their_end_as_published(tmp_path):
    loaded = load_rows(str(rows_file(tmp_path / "rows.jsonl")))
    own = load_recipe(None, [], {"model": "-", "output": "-"})
    benchmark = own.model_copy(update={"task": "sst2"})
    assert encode_options(loaded, own, "decoder").cut == "middle"
    assert encode_options(loaded, benchmark, "decoder").cut == "end"


@pytest.mark.parametrize("length", [1, 2])
def test_a_length_that_leaves_nothing_to_learn_is_refused(tmp_path, length):
    rows = [chat("hi", "ho")] * 2
    recipe = load_recipe(None, [f"max_length={length}"], {"model": "-", "output": "-"})
    loaded = load_rows(str(rows_file(tmp_path / "rows.jsonl", rows)))
    refused(f"none to learn within max_length={length}",
            lambda: encode_rows(loaded, recipe, byte_tokenizer(), "decoder"))  # fmt: skip


@pytest.mark.parametrize("length", [1, 2])
def test_a_class_is_not_learned_from_special_tokens_alone(tmp_path, length):
    tokenizer = byte_tokenizer(ends=True)
    recipe = load_recipe(None, [f"max_length={length}"], {"model": "-", "output": "-"})
    rows = [{"text": "abc", "label": "yes"}, {"text": "def", "label": "no"}]
    loaded = load_rows(str(rows_file(tmp_path / "rows.jsonl", rows)))
    if length == 2:
        lengths = map(len, encode_rows(loaded, recipe, tokenizer, "encoder")["input_ids"])
        assert list(lengths) == [2, 2]
        return
    refused("none to learn within max_length=1",
            lambda: encode_rows(loaded, recipe, tokenizer, "encoder"))  # fmt: skip
