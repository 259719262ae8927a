"""What a request does wrong is said in one line with its field, whatever it is."""

import json

import pytest

from lorada.inference.serving.requests import (
    NOT_OFFERED,
    READ_OVER,
    ChatRequest,
    CompletionRequest,
    Refused,
    request_of,
)

COMPLETION = {"model": "m", "prompt": "a"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
WRONG = [
    None, True, -1, 0, 3, 10**40, 0.5, float("nan"), float("inf"), "", "s", [], [None], [[]], [{}],
    {}, {"a": 1}, {"include_usage": "yes"}, [{"role": "user"}], [{"role": 1, "content": "a"}],
    [{"role": "user", "content": [5]}], [{"role": "user", "content": "a", "b\nc": 5}],
]  # fmt: skip
BOTH = pytest.mark.parametrize(
    ("kind", "right"), [(CompletionRequest, COMPLETION), (ChatRequest, CHAT)], ids=["text", "chat"]
)


def kind_of(body):
    return ChatRequest if isinstance(body, dict) and "messages" in body else CompletionRequest


def mistake(kind, body):
    """The line on a body, and its field; None for a right one."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        request_of(kind, text)
    except Refused as refused:
        return refused.detail, refused.body["error"]["param"]
    return None


@BOTH
def test_every_wrong_value_of_every_field_is_said_with_its_field(kind, right):
    said = {}
    for field in [*kind.model_fields, *NOT_OFFERED, *READ_OVER, "un\nknown", "x" * 10_000]:
        for value in WRONG:
            if found := mistake(kind, {**right, field: value}):
                line, named = found
                said[named] = said.get(named, 0) + 1
                assert line.isprintable()
                assert len(line) <= 500
                assert repr(field)[1:-1][:400] in line
    assert READ_OVER.isdisjoint(said)
    assert len(said) == len({*kind.model_fields, *NOT_OFFERED}) + 2
    assert all(count > len(WRONG) / 3 for count in said.values())


@BOTH
def test_values_that_change_nothing_are_taken(kind, right):
    for name, nothing in NOT_OFFERED.items():
        for value in (None, *nothing):
            assert mistake(kind, {**right, name: value}) is None, name
    assert mistake(kind, {**right, **dict.fromkeys(READ_OVER, "any")}) is None
    assert mistake(kind, {**right, "stream_options": {"include_obfuscation": False}}) is None
    # A number is no truth value: 0 asks for the log-probability of each token.
    assert mistake(kind, {**right, "logprobs": 0})


SAID = {
    "nothing": (b"", "Invalid JSON: EOF while parsing"),
    "a list": (b"[]", "Input should be an object"),
    "nested": (
        CHAT | {"messages": [*CHAT["messages"], {"role": "god", "content": "a"}]},
        "messages.1.role: Input should be 'system', 'developer', 'user' or 'assistant'",
    ),
    "a picture": (
        CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 5}]}]},
        "messages.0.content.list[TextPart].0.type: Input should be 'text'",
    ),
    "several prompts": (
        COMPLETION | {"prompt": ["a", "b"]}, "one prompt: send several requests at the same time",
    ),
    "tools": (CHAT | {"tools": [{"type": "function"}]}, "'tools' is not offered here: leave it"),
    "a call of a tool": (
        CHAT | {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
        "'tool_calls' of a message is not offered here: leave it out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_a_mistake_names_the_field_and_what_it_must_be(case):
    body, text = SAID[case]
    assert text in mistake(kind_of(body), body)[0]


TURNS = {
    "a text": ({"role": "user", "content": "a"}, {"role": "user", "content": "a"}),
    "parts": (
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "ab"},
    ),
    "an answer as a client keeps it": (
        {"role": "assistant", "content": "a", "refusal": None, "tool_calls": None, "audio": None},
        {"role": "assistant", "content": "a"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TURNS)
def test_turns_go_to_the_template_as_they_stand_in_rows(case):
    sent, turn = TURNS[case]
    (message,) = request_of(ChatRequest, json.dumps(CHAT | {"messages": [sent]}).encode()).messages
    assert message.turn() == turn
