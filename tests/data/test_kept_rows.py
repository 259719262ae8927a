"""Rows that a model should still do: which forms a model can be scored on, and the bundled rows."""

import json

import pytest
from folders import refused, rows_file

from lorada.data.rows.kept_rows import GENERAL, Learned, kept_rows
from lorada.support.row_sources import resolve

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
PROMPTS = Learned("prompt", (), None, "decoder")
CHATS = Learned("messages", (), None, "decoder")
CLASSES = Learned("label", ("bad", "good"), None, "decoder")
FILES = {
    "chats": [CHAT],
    "prompts": [{"prompt": "a", "response": "b"}],
    "texts": [{"text": "a b c"}, {"text": "d"}],
    "labels": [{"text": "a", "label": "good"}, {"text": "b", "label": "bad"}],
    "tags": [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": []}],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    return {name: str(rows_file(folder / f"{name}.jsonl", rows)) for name, rows in FILES.items()}


def test_a_model_that_writes_is_asked_rows_of_every_form_each_file_in_its_own(files):
    kept = kept_rows(",".join(files.values()), PROMPTS).by_name
    assert list(kept) == list(files.values())
    assert [rows.form for rows in kept.values()] == ["messages", "prompt", "text", *["prompt"] * 2]
    assert kept[files["labels"]].rows[0] == {"prompt": "a\n", "response": "good"}
    answers = [row["response"] for row in kept[files["tags"]].rows]
    assert answers == ["x, y", "none"]


def test_a_model_that_learns_chats_is_asked_prompts_as_turns_but_the_bundled_rows_as_they_are(
    files,
):
    (rows,) = kept_rows(files["labels"], CHATS).by_name.values()
    assert [turn["content"] for turn in rows.rows[0]["messages"]] == ["a\n", "good"]
    (bundled,) = kept_rows(None, CHATS).by_name.values()
    assert bundled.form == "prompt"


def test_at_least_500_bundled_rows_are_different_and_those_that_the_generator_writes(
    tmp_path, monkeypatch
):
    import make_kept_rows

    (rows,) = kept_rows(None, PROMPTS).by_name.values()
    contents = {json.dumps(row) for row in rows.rows}
    assert len(contents) == len(rows.rows) >= 500
    monkeypatch.setattr(make_kept_rows, "TARGET", tmp_path / "general.jsonl")
    make_kept_rows.main()
    assert (tmp_path / "general.jsonl").read_bytes() == resolve(GENERAL).read_bytes()


def test_a_head_that_begins_at_random_has_nothing_to_keep_and_its_own_has(files):
    assert "begins at random" in kept_rows(None, CLASSES).reason
    refused("the head of this model begins at random", lambda: kept_rows(files["labels"], CLASSES))
    own = kept_rows(files["labels"], CLASSES, own_classes=("GOOD", "bad", "other"))
    assert own.by_name[files["labels"]].labels == ("bad", "good")
    refused(
        "has prompt rows, and this model answers label rows",
        lambda: kept_rows(files["prompts"], CLASSES, own_classes=("good", "bad")),
    )


def test_other_models_have_no_bundled_rows_and_take_those_they_can_read(files):
    seq2seq = Learned("prompt", (), None, "encoder_decoder")
    assert "--keep FILE names others" in kept_rows(None, seq2seq).reason
    assert kept_rows(files["prompts"], seq2seq).by_name
    refused("not for an encoder–decoder", lambda: kept_rows(files["texts"], seq2seq))
