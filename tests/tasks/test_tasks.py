"""Rows of a user's own file, and how they become tokens and scores."""

import json

import pytest
from folders import byte_tokenizer, rows_file

from lorada.tasks.metrics import exact_match
from lorada.tasks.row_files import read_rows
from lorada.tasks.row_forms import in_form
from lorada.tasks.rows import answer_of
from lorada.tasks.tokenize import IGNORED, EncodeOptions
from lorada.tasks.tokenize import encode as every

TOKENIZER = byte_tokenizer()


def encode(row, form="prompt", tokenizer=TOKENIZER, **options):
    (encoded,) = every([row], form, tokenizer, EncodeOptions(**{"max_length": 64, **options}))
    return encoded


def test_only_the_response_and_its_end_count_by_default():
    encoded = encode({"prompt": "ab", "response": "cd"})
    kept = [i for i in encoded.features["labels"] if i != IGNORED]
    assert TOKENIZER.decode(kept) == "cd<e>"
    assert TOKENIZER.decode(encoded.features["input_ids"]) == "abcd<e>"


def test_all_tokens_count_when_asked():
    encoded = encode({"prompt": "ab", "response": "cd"}, loss_on="all")
    assert encoded.features["labels"] == encoded.features["input_ids"]


def test_messages_go_through_the_chat_template_and_the_last_turn_is_the_response():
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "2?"},
        {"role": "assistant", "content": "3"},
    ]
    encoded = encode({"messages": turns}, form="messages")
    text = TOKENIZER.decode(encoded.features["input_ids"])
    assert text == "<|user|>hi<e><|assistant|>yo<e><|user|>2?<e><|assistant|>3<e>"
    assert TOKENIZER.decode([i for i in encoded.features["labels"] if i != IGNORED]) == "3<e>"
    assert answer_of({"messages": turns}) == "3"


def test_a_template_that_changes_the_prompt_afterwards_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    with pytest.raises(ValueError, match="chat template"):
        encode({"messages": turns}, "messages", tokenizer)


def test_rows_longer_than_the_context_are_cut_and_said_to_be():
    encoded = encode({"prompt": "abc", "response": "defgh"}, max_length=5)
    assert encoded.truncated
    assert len(encoded.features["input_ids"]) == 5
    assert encode({"prompt": "a" * 9, "response": "b"}, max_length=5) is None


def test_labelled_texts_become_class_indices():
    encoded = encode({"text": "abc", "label": "no"}, form="label", labels=("no", "yes"))
    assert encoded.features["labels"] == 0
    assert not encoded.truncated
    assert encode(
        {"text": "abc", "label": "yes"}, form="label", labels=("no", "yes"), max_length=2
    ).truncated


def test_exact_match_forgives_white_space_at_the_ends_only():
    rows = [{"response": text} for text in ("4", "5", "12")]
    assert exact_match([" 4", "5 ", "1 2"], rows) == {"exact_match": pytest.approx(200 / 3)}


def test_csv_and_json_lines_give_the_same_rows(tmp_path):
    rows = [{"prompt": 'say "a, b"', "response": "a\nb"}, {"prompt": "ü", "response": "ß"}]
    csv = tmp_path / "rows.csv"
    csv.write_text('prompt,response\n"say ""a, b""","a\nb"\nü,ß\n')
    assert read_rows(csv) == read_rows(rows_file(tmp_path / "rows.jsonl", rows)) == rows


def test_a_byte_order_mark_and_a_line_separator_inside_a_text_are_no_obstacle(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "a\u2028b", "response": "c"}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\n\n")
    assert read_rows(path) == [row]


BAD_FILES = {
    "broken line": (b'{"prompt": "a", "response": "b"}\n{"prompt": \n', "line 2 is not JSON"),
    "not an object": (b"[1]\n", "line 1 is not a JSON object"),
    "empty": (b"\n", "has no rows"),
    "too deep": (b"[" * 100_000 + b"\n", "line 1 is not JSON"),
    "latin-1": ('{"prompt": "ü", "response": "b"}'.encode("latin-1"), "not UTF-8"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_says_where_it_is_bad(tmp_path, case):
    content, message = BAD_FILES[case]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows(path)


def test_a_csv_line_with_another_number_of_fields_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,1\nb\n")
    with pytest.raises(ValueError, match="line 3 has another number of fields"):
        read_rows(path)


BAD_ROWS = {
    "no known form": ([{"question": "a"}], "row 1 has fields question; each needs messages or"),
    "missing field": ([{"text": "a", "label": 0}, {"text": "b"}], "row 2 has no field 'label'"),
    "not a text": ([{"prompt": 3, "response": "b"}], "prompt is not a text"),
    "half a character": ([{"prompt": "\ud800", "response": "b"}], "prompt is not valid Unicode"),
    "a list as a label": ([{"text": "a", "label": [1]}], "label is neither a text nor an integer"),
    "no content": (
        [{"messages": [{"role": "assistant", "content": None}]}],
        "content is not a text",
    ),
    "no assistant": (
        [{"messages": [{"role": "user", "content": "a"}]}],
        "messages must be a list of two or more role/content objects, the last by the assistant",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_say_which_row(case):
    rows, message = BAD_ROWS[case]
    with pytest.raises(ValueError, match=message):
        in_form(rows, "file")
