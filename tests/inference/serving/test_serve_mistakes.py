"""What a request does wrong is said in one line of our own words, whatever it is."""

import json

import pytest
from pydantic import ValidationError

from lorada.inference.serving.refusals import Refused
from lorada.inference.serving.requests import (
    READ_OVER,
    UNCHANGED,
    ChatRequest,
    CompletionRequest,
    request_of,
)

COMPLETION = {"model": "m", "prompt": "a"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
WRONG = [
    None, True, -1, 0, 3, 10**40, 0.5, float("nan"), float("inf"), "", "s", [], [None], [[]], [{}],
    {}, {"a": 1}, {"include_usage": "yes"}, [{"role": "user"}], [{"role": 1, "content": "a"}],
    [{"role": "user", "content": [5]}], [{"role": "user", "content": "a", "b\nc": 5}],
]  # fmt: skip


def mistake(kind, body):
    """The line on a body, and its field; None for a right one."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        request_of(kind, text)
    except Refused as refused:
        return refused.detail, refused.param
    return None


@pytest.mark.parametrize(
    ("kind", "right"), [(CompletionRequest, COMPLETION), (ChatRequest, CHAT)], ids=["text", "chat"]
)
def test_every_wrong_value_of_every_field_is_said_in_our_words(kind, right):
    said = {}
    fields = {*kind.model_fields, *UNCHANGED}
    for field in [*fields, *READ_OVER, "un\nknown", "x" * 10_000]:
        for value in WRONG:
            found = mistake(kind, {**right, field: value})
            if found:
                said[field] = said.get(field, 0) + 1
                line, named = found
                assert "must be" in line
                assert "put should" not in line
                assert line.isprintable()
                assert len(line) < 250
                assert line.startswith(named)
    assert set(said) == {*fields, "un\nknown", "x" * 10_000}
    assert all(count > len(WRONG) / 3 for count in said.values())


@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest], ids=["text", "chat"])
def test_values_that_change_nothing_are_read_over(kind):
    right = CHAT if kind is ChatRequest else COMPLETION
    same = request_of(kind, json.dumps(right).encode())
    for name in READ_OVER:
        assert request_of(kind, json.dumps({**right, name: {"a": 1}}).encode()) == same
    for values in (UNCHANGED, dict.fromkeys(UNCHANGED)):
        assert request_of(kind, json.dumps({**right, **values}).encode()) == same


SAID = {
    "nothing": (CompletionRequest, b"", "the request is not JSON: EOF while parsing a value at"),
    "half": (CompletionRequest, b'{"model"', "at line 1 column 8; send one object"),
    "a list": (CompletionRequest, b"[]", "the request must be one JSON object; it is []"),
    "nested": (
        ChatRequest,
        CHAT | {"messages": [*CHAT["messages"], {"role": "god", "content": "a"}]},
        "user, assistant or tool) and a content (a text, or a list of parts of type text); "
        "messages.1.role is 'god'",
    ),
    "no turn": (
        ChatRequest,
        CHAT | {"messages": [5]},
        "messages: must be a list of 1 to 10000 turns, each with a role (system, developer, ",
    ),
    "missing": (
        ChatRequest,
        CHAT | {"messages": [{"role": "user"}]},
        "of parts of type text); messages.0.content is missing",
    ),
    "a field of the other kind": (
        ChatRequest,
        CHAT | {"prompt": "a"},
        "prompt: must be left out, as there is no such field; it is 'a'",
    ),
    "a field in a field": (
        CompletionRequest,
        COMPLETION | {"stream_options": {"stop": 5}},
        "stream_options.stop: must be left out, as there is no such field; it is 5",
    ),
    "half a text": (
        CompletionRequest,
        COMPLETION | {"prompt": ["a", 5]},
        "a list of at most 256 of either; it is ['a', 5]",
    ),
    "long": (
        CompletionRequest,
        COMPLETION | {"temperature": "y" * 10**5},
        f"temperature: must be a number from 0 to 2, or left out; it is '{'y' * 39}…",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_a_mistake_names_the_field_what_it_must_be_and_what_it_is(case):
    kind, body, text = SAID[case]
    assert text in mistake(kind, body)[0]


@pytest.mark.parametrize(
    "body",
    [
        COMPLETION | {"prompt": [-1] * 50_000},
        COMPLETION | {"prompt": [5.5] * 50_000},
        COMPLETION | {"prompt": [{}] * 50_000},
        CHAT | {"messages": [{}] * 9000},
        CHAT | {"messages": [{"role": "user", "content": [5] * 50_000}]},
    ],
    ids=["negative", "broken", "objects", "turns", "parts"],
)
def test_a_list_of_wrong_values_is_left_at_the_first(body):
    """A megabyte of them kept the server from all other requests for 20 seconds."""
    kind = ChatRequest if "messages" in body else CompletionRequest
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() < 10
