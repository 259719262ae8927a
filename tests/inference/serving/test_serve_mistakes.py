"""What a request does wrong is said in one line with its field, whatever it is."""

import json

import pytest
from pydantic import ValidationError

from lorada.inference.serving.requests import ChatRequest, CompletionRequest, Refused, request_of

COMPLETION = {"model": "m", "prompt": "a"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
WRONG = [
    None, True, -1, 0, 3, 10**40, 0.5, float("nan"), float("inf"), "", "s", [], [None], [[]], [{}],
    {}, {"a": 1}, {"include_usage": "yes"}, [{"role": "user"}], [{"role": 1, "content": "a"}],
    [{"role": "user", "content": [5]}], [{"role": "user", "content": "a", "b\nc": 5}],
]  # fmt: skip
FREE = {"user", "metadata", "store", "service_tier", "parallel_tool_calls"}
SAME = {
    "n": 1, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "top_logprobs": 0,
    "logit_bias": {}, "echo": False, "tools": [], "tool_choice": "none", "seed": None,
    "suffix": None, "logprobs": False, "response_format": {"type": "text"},
}  # fmt: skip
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
    for field in [*kind.model_fields, "un\nknown", "x" * 10_000]:
        for value in WRONG:
            found = mistake(kind, {**right, field: value})
            if found:
                said[field] = said.get(field, 0) + 1
                line, named = found
                assert line.isprintable()
                assert len(line) < 250
                assert line.startswith(named)
    assert set(said) == {*kind.model_fields, "un\nknown", "x" * 10_000} - FREE
    assert all(count > len(WRONG) / 3 for count in said.values())


@BOTH
def test_values_that_change_nothing_are_taken(kind, right):
    for values in (SAME, dict.fromkeys(SAME), dict.fromkeys(FREE, "any")):
        assert mistake(kind, {**right, **values}) is None


SAID = {
    "nothing": (b"", "must be one JSON object: Invalid JSON: EOF while parsing"),
    "a list": (b"[]", "one JSON object: Input should be an object; it is []"),
    "nested": (
        CHAT | {"messages": [*CHAT["messages"], {"role": "god", "content": "a"}]},
        "messages.1.role: Input should be 'system', 'developer', 'user', 'assistant' or 'tool'; it",
    ),
    "missing": (
        CHAT | {"messages": [{"role": "user"}]},
        "messages.0.content: Field required; it is missing",
    ),
    "a field of the other kind": (
        CHAT | {"prompt": "a"},
        "prompt: Extra inputs are not permitted; it is 'a'",
    ),
    "half a text": (
        COMPLETION | {"prompt": ["a", 5]},
        "a list of token ids, or a list of 1 to 256 of either; it is ['a', 5]",
    ),
    "log-probabilities": (
        CHAT | {"logprobs": True, "top_logprobs": 2},
        "logprobs: must be left out, as none are offered; it is True",
    ),
    "another format": (
        COMPLETION | {"response_format": {"type": "json_object"}},
        "response_format.type: Input should be 'text'; it is 'json_object'",
    ),
    "long": (
        COMPLETION | {"temperature": "y" * 10**5},
        f"temperature: Input should be a valid number; it is '{'y' * 39}…",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_a_mistake_names_the_field_what_it_must_be_and_what_it_is(case):
    body, text = SAID[case]
    assert text in mistake(kind_of(body), body)[0]


def test_a_list_of_wrong_values_is_left_at_the_first():
    """A megabyte of them kept the server from all other requests for 20 seconds."""
    for body in (
        COMPLETION | {"prompt": [-1] * 50_000},
        COMPLETION | {"prompt": [{}] * 50_000},
        CHAT | {"messages": [{}] * 9000},
        CHAT | {"messages": [{"role": "user", "content": [5] * 50_000}]},
    ):
        with pytest.raises(ValidationError) as caught:
            kind_of(body).model_validate(body)
        assert caught.value.error_count() < 10
