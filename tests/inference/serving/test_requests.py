"""A request that cannot be followed is refused with the name of the field."""

import pytest

from lorada.inference.serving.requests import ROUTES, RequestError, checked_fields, read_body

CHAT, COMPLETION, RESPONSE = ROUTES
HI = [{"role": "user", "content": "hi"}]
ASKED = {CHAT: {"messages": HI}, COMPLETION: {"prompt": "hi"}, RESPONSE: {"input": "hi"}}
# Values that a field cannot have, whatever the route.
WRONG = [
    ("temperature", "hot"), ("temperature", -1), ("temperature", float("nan")), ("top_p", 2),
    ("top_p", 0), ("seed", "a"), ("seed", 2**70), ("stream", "yes"), ("generation_config", "{"),
    ("generation_config", "[1]"), ("nonsense", 1),
]  # fmt: skip
WRITING = [
    ("max_tokens", -1), ("max_tokens", 0), ("max_tokens", "x"), ("max_tokens", 1.5),
    ("max_tokens", True), ("stop", []), ("stop", ""), ("stop", 3), ("stop", ["a", ""]),
    ("stop", ["a"] * 17), ("frequency_penalty", -1), ("n", 2), ("logprobs", 2),
    ("presence_penalty", 0.5),
]  # fmt: skip
ONLY = {
    CHAT: [
        ("messages", []), ("messages", "hi"), ("messages", [3]), ("messages", [{"content": "hi"}]),
        ("messages", [{"role": "user"}]), ("messages", [{"role": "user", "content": 3}]),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
        ("max_completion_tokens", 0), ("response_format", {"type": "json_object"}),
        ("tool_choice", "required"), ("tools", 3), ("tools", [{"type": "function"}]),
        ("logit_bias", {"a": 1}), ("logit_bias", {"3": 101}), ("chat_template_kwargs", 3),
        ("parallel_tool_calls", False), ("reasoning_effort", "high"),
    ],
    COMPLETION: [
        ("prompt", ""), ("prompt", 3), ("prompt", ["hi"]), ("echo", True), ("best_of", 2),
        ("suffix", " end"), ("logit_bias", {"3": 1}),
    ],
    RESPONSE: [
        ("input", ""), ("input", 3), ("max_output_tokens", -1), ("tool_choice", "required"),
        ("previous_response_id", "a"), ("text", {"format": {"type": "json_object"}}),
    ],
}  # fmt: skip
CASES = [
    (route, *case)
    for route in ROUTES
    for case in [*WRONG, *ONLY[route], *([] if route == RESPONSE else WRITING)]
]


@pytest.mark.parametrize(("route", "field", "value"), CASES)
def test_a_value_that_cannot_be_followed_is_refused_with_its_field(route, field, value):
    with pytest.raises(RequestError) as error:
        checked_fields(ROUTES[route], {**ASKED[route], field: value})
    assert (error.value.field, error.value.status) == (field, 400)
    assert str(error.value).startswith(field)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("route", ROUTES)
def test_a_missing_question_is_named(route):
    (field,) = ASKED[route]
    with pytest.raises(RequestError, match=f"^{field} is missing$"):
        checked_fields(ROUTES[route], {})


def test_the_place_of_a_wrong_turn_is_said():
    turns = [*HI, {"role": "assistant", "content": "ho"}, {"content": "hi"}]
    with pytest.raises(RequestError, match=r"^messages\.2\.role is missing$"):
        checked_fields(ROUTES[CHAT], {"messages": turns})


def test_values_that_change_nothing_are_left_out_and_others_stay():
    neutral = {"n": 1, "user": "me", "logprobs": False, "presence_penalty": 0, "store": True}
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    asked = {"messages": HI, "temperature": 1, "stop": ["a", "b"], "seed": 0, "tools": tools}
    assert checked_fields(ROUTES[CHAT], {**asked, **neutral}) == asked
    assert checked_fields(ROUTES[CHAT], {**asked, "tool_choice": "auto"}) == asked
    without = {name: value for name, value in asked.items() if name != "tools"}
    assert checked_fields(ROUTES[CHAT], {**asked, "tool_choice": "none"}) == without


def test_a_request_is_an_object_of_json_and_null_is_no_value():
    assert read_body(b'{"prompt": "hi", "stop": null}') == {"prompt": "hi"}
    for text in (b"{", b"[1]", b""):
        with pytest.raises(RequestError, match="the request is not"):
            read_body(text)
