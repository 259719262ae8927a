"""Rows of a user's own: how they become tokens, errors that say which row, and shares of them."""

import logging
import re
from collections import Counter
from itertools import combinations

import pytest
from folders import ROWS, byte_tokenizer, chats, llama_folder, refused, rows_file
from hypothesis import given, settings
from hypothesis import strategies as st
from trained_runs import run_recipe

from lorada.data import batches, tokenize
from lorada.data.batches import IGNORED
from lorada.data.rows.held_out_share import draw_held_out, share_of
from lorada.data.rows.own_rows import load_rows
from lorada.data.rows.row_content import content_of
from lorada.data.scoring.metrics import numbers
from lorada.data.tokenize import EncodeOptions, encode, encode_rows, prompt_of
from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

TOKENIZER = byte_tokenizer()
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
)


def chat(*roles, content="a"):
    return {"messages": [{"role": role, "content": content} for role in roles]}


def loaded(tmp_path, rows, name="rows.jsonl"):
    return load_rows(str(rows_file(tmp_path / name, rows)))


def encoded(rows, kind="decoder", max_length=64, tokenizer=TOKENIZER, **options):
    recipe = load_recipe(None, [f"max_length={max_length}"], {"model": "-", "output": "-"})
    return encode_rows(rows, recipe, tokenizer, kind, **options)


def test_a_template_that_refuses_a_chat_is_named_with_file_and_row_of_the_file(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = ALTERNATING
    good = chat("user", "assistant")
    rows = loaded(tmp_path, [good, good, good, chat("user", "user", "assistant"), good])
    message = (
        "rows.jsonl row 4: the chat template refuses the turns user, user, assistant: .*alternate"
    )
    refused(message, lambda: encoded(rows, tokenizer=tokenizer))
    some = rows.part([4, 3])  # as they are where a random part is taken
    refused(message, lambda: encoded(some, tokenizer=tokenizer))
    tokenizer.chat_template = "{{ messages[0].content + 5 }}"
    refused("row 1: the chat template refuses .* user", lambda: encoded(rows, tokenizer=tokenizer))
    tokenizer.chat_template = None
    refused(
        "row 1: this tokenizer has no chat template", lambda: encoded(rows, tokenizer=tokenizer)
    )


NOTHING = {
    "prompt": {"prompt": "", "response": ""},
    "label": {"text": "", "label": "no"},
    "score": {"text": "", "score": 1},
    "choice": {"prompt": "", "candidates": ["a", "b"], "answer": 0},
    "text": {"text": ""},
}


def silent_tokenizer():
    """One that puts nothing around a text, and no end behind it."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


@pytest.mark.parametrize("form", NOTHING)
def test_a_row_without_a_token_is_left_out_of_training_and_named_in_scoring(form, tmp_path, caplog):
    whole = {"prompt": "ab", "response": "cd", "text": "ef"}
    empty, tokenizer = NOTHING[form], silent_tokenizer()
    good = {name: whole.get(name, value) for name, value in empty.items()}
    message = "has no row to learn from: every one gives this tokenizer no token"
    refused(message, lambda: encoded(loaded(tmp_path, [empty] * 2), tokenizer=tokenizer))
    rows = loaded(tmp_path, [good, empty, good])
    if form != "text":  # of texts, all tokens are joined
        assert len(encoded(rows, tokenizer=tokenizer)) == 2
        said = "of 3 rows 1 is left out, as this tokenizer has no token for a text"
        assert said in caplog.text
        refused(
            "rows.jsonl row 2 cannot be answered",
            lambda: encoded(rows, tokenizer=tokenizer, answered=True),
        )


def test_rows_that_are_cut_or_left_out_are_counted_and_refused_if_none_is_left(tmp_path, caplog):
    long, cut = {"prompt": "a" * 9, "response": "b"}, {"prompt": "a", "response": "b" * 9}
    encoded(loaded(tmp_path, [long, cut, cut, ROWS[0]]), max_length=8)
    said = (
        "of 4 rows 4 are cut to max_length=8, 2 of them in an answer; the longest has 11 tokens: "
        "max_length=11 takes every row whole"
    )
    assert said in caplog.text
    filled = {"role": "user", "content": "a" * 40}
    rows = loaded(tmp_path, [{"messages": [filled, {"role": "assistant", "content": "b"}]}] * 2)
    refused("none to learn within max_length=5", lambda: encoded(rows, max_length=5))


def sequence(prompt, response, **options):
    """The text that a model reads, the text of the tokens that count, and whether it is cut."""
    row = {"prompt": prompt, "response": response}
    (one,) = encode([row], "prompt", TOKENIZER, EncodeOptions(**{"max_length": 8, **options}))
    kept = [i for i in one.features["labels"] if i != IGNORED]
    return TOKENIZER.decode(one.features["input_ids"]), TOKENIZER.decode(kept), one.truncated


def test_source_and_target_have_lengths_of_their_own():
    row, to = ("abcdefgh", "klmnop"), {"kind": "encoder_decoder"}
    assert sequence(*row, **to, max_length=5, target_length=3) == ("abcde", "kl<e>", True)
    assert sequence(*row, **to, target_length=7) == ("abcdefgh", "klmnop<e>", False)
    assert sequence(*row, max_length=40, target_length=3) == ("abcdefghklm", "klm", True)
    assert sequence("ab", "", **to)[1] == sequence("ab", "")[1] == "<e>"


def test_texts_of_many_chunks_are_cut_as_one(tmp_path, monkeypatch):
    rows = loaded(tmp_path, [{"text": "ab" * (number % 9)} for number in range(40)])
    whole = encoded(rows, max_length=20).to_dict()
    assert {len(ids) for ids in whole["input_ids"]} == {20}
    monkeypatch.setattr(tokenize, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(batches, "ROWS_AT_ONCE", 7)
    assert encoded(rows, max_length=20).to_dict() == whole
    assert encoded(rows, max_length=19).to_dict() != whole


def test_prompts_are_put_to_a_run_of_chats_as_a_users_turn(tmp_path, caplog):
    llama_folder(tmp_path / "llama")
    rows_file(tmp_path / "chats.jsonl", chats(*((row["prompt"], row["response"]) for row in ROWS)))
    settings = ["max_steps=2", "report_to=[]", "max_new_tokens=2"]
    recipe = run_recipe(settings, tmp_path, tmp_path / "run", rows="chats", method="full")
    run = load_run(train(recipe, quiet=True).run)
    asked = evaluate(run, recipe.data)
    prompts = str(rows_file(tmp_path / "prompts.jsonl", ROWS))
    with caplog.at_level(logging.INFO):
        as_prompts = evaluate(run, prompts)
    del asked["sha256"], as_prompts["sha256"]
    assert as_prompts == asked
    said = "has prompts, and this run has learned chats: each is a user's turn"
    assert said in caplog.text
    rows = load_rows(prompts, "messages")
    assert prompt_of(rows.rows[0], rows.form, TOKENIZER) == "<|user|>0 + 0 =<e><|assistant|>"


def test_a_difference_in_the_chat_template_that_cannot_be_mended_is_told(tmp_path, caplog):
    choice = {"prompt": "a", "candidates": ["b", "c"], "answer": 0}
    for row, trained, told in (
        (chat("user", "assistant"), "prompt", "has messages rows, .* prompt rows: only one"),
        (choice, "messages", "has choice rows, .* messages rows: only one"),
    ):
        caplog.clear()
        rows = load_rows(str(rows_file(tmp_path / "rows.jsonl", [row])), trained)
        assert rows.rows == [row]
        assert re.search(told, caplog.text)
    caplog.clear()
    load_rows(str(rows_file(tmp_path / "rows.jsonl", [choice])), "prompt")
    load_rows(str(rows_file(tmp_path / "rows.jsonl", [chat("user", "assistant")])), "messages")
    assert not caplog.text


def labelled(*counts):
    rows = [{"text": f"{label} {i}", "label": label} for label, n in counts for i in range(n)]
    return sorted(rows, key=lambda row: row["text"][::-1])  # classes in no order


def test_a_share_is_a_number_with_a_percent_sign():
    assert share_of("20%") == 0.2
    assert share_of("12.5 %") == 0.125
    assert [share_of(name) for name in (None, "20", "rows.jsonl", "20%.jsonl")] == [None] * 4
    for text in ("0%", "100%", "250%"):
        refused(f"{text} of the rows cannot be held out", lambda text=text: share_of(text))


def test_a_number_that_is_written_in_two_ways_is_no_two_classes(tmp_path):
    rows = [{"text": "a", "label": label} for label in ("5", "1", "1.0", "1")]
    refused("has the labels 1 and 1.0: write both alike", lambda: loaded(tmp_path, rows))
    assert loaded(tmp_path, rows[2:3]).labels == ("1.0",)
    assert loaded(tmp_path, [rows[1], {"text": "b", "label": "01"}]).labels == ("01", "1")


def test_each_class_loses_its_share_the_same_rows_for_a_seed():
    rows = labelled(("a", 100), ("b", 50), ("c", 5), ("d", 1))
    found = Counter(rows[index]["label"] for index in draw_held_out(rows, 0.2, 0))
    assert found == {"a": 20, "b": 10, "c": 1}
    assert draw_held_out(rows, 0.2, 0) == draw_held_out(rows, 0.2, 0) != draw_held_out(rows, 0.2, 4)


def test_rows_with_several_labels_are_held_out_by_the_rarest_of_them():
    labels = [["common"]] * 60 + [["common", "rare"]] * 20 + [[]] * 20
    rows = [{"text": str(index), "labels": labels[index]} for index in range(100)]
    found = Counter(tuple(rows[index]["labels"]) for index in draw_held_out(rows, 0.2, 0))
    assert found == {("common",): 12, ("common", "rare"): 4, (): 4}


def test_many_small_classes_lose_the_share_together():
    rows = labelled(*((str(label), 2) for label in range(50)))
    assert 18 <= len(draw_held_out(rows, 0.2, 0)) <= 20


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.sampled_from("xy")), min_size=20, max_size=60),
    share=st.floats(0.2, 0.8),
)
def test_copies_stay_on_one_side_and_each_class_is_learned(rows, share):
    rows = [{"text": f" {i % 10}  a" if i % 2 else f"{i} a", "label": c} for i, c in rows]
    try:
        held_out = draw_held_out(rows, share, 0)
    except ValueError:
        return
    learned = [row for index, row in enumerate(rows) if index not in held_out]
    assert not {content_of(rows[i]) for i in held_out} & {content_of(row) for row in learned}
    assert {row["label"] for row in learned} == {row["label"] for row in rows}


@pytest.mark.parametrize("rows", [[{"text": "a"}] * 9, [{"text": "a"}, {"text": "b"}]])
def test_rows_of_which_none_can_be_held_out_are_refused(rows):
    refused(f"20% of {len(rows)} rows holds out none", lambda: draw_held_out(rows, 0.2, 0))


def test_a_group_is_held_out_as_a_whole():
    rows = [{"text": str(i), "label": "ab"[i % 2], "group": i // 10} for i in range(100)]
    found = draw_held_out(rows, 0.2, 0)
    assert Counter(rows[index]["group"] for index in found) in [
        Counter(dict.fromkeys(two, 10)) for two in combinations(range(10), 2)
    ]


def test_r2_is_the_share_of_the_spread_that_the_numbers_explain():
    rows = [{"score": score} for score in (1, 2, 3)]
    assert numbers([1.0, 2.0, 3.5], rows)["r2"] == pytest.approx(1 - 0.25 / 2)
    assert numbers([2.0, 2.0, 2.0], rows)["r2"] == pytest.approx(0.0)  # as the mean does
