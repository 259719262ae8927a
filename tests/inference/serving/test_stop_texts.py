"""A stop text and what is behind it do not stay in an answer, whole or in pieces."""

import json

from hypothesis import given
from hypothesis import strategies as st

from lorada.inference.serving.stop_texts import Cutter, StreamCutter, cut_answer

LETTERS = st.text("ab.", max_size=12)
STOPS = st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3)


def cut_before(text, stops):
    places = [place for place in map(text.find, stops) if place >= 0]
    return text[: min(places)] if places else text


@given(st.lists(LETTERS), STOPS)
def test_however_a_text_comes_in_pieces_it_ends_before_its_first_stop_text(pieces, stops):
    cutter = Cutter(stops)
    shown = "".join(map(cutter.feed, pieces)) + cutter.rest()
    text = "".join(pieces)
    if not any(stop in text for stop in stops):
        assert shown == text
        return
    # The first stop text that is whole ends it; a longer one might have begun before it.
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert any(text[len(shown) :].startswith(stop) for stop in stops)


def test_a_whole_answer_ends_before_its_stop_text_and_says_that_it_stopped():
    for choice, name in (
        ({"message": {"content": "one END"}}, "message"),
        ({"text": "one END"}, ""),
    ):
        body = json.dumps({"choices": [{**choice, "finish_reason": "length"}]}).encode()
        (found,) = json.loads(cut_answer(body, [" END"]))["choices"]
        holder = found[name] if name else found
        assert (holder["content" if name else "text"], found["finish_reason"]) == ("one", "stop")


def events(choices):
    return "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices).encode()


def test_what_only_looked_like_a_stop_text_is_sent_before_the_last_event():
    pieces = [{"index": 0, "delta": {"content": text}} for text in ("one ", "E", "N")]
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    stream, data = StreamCutter([" END"]), events([*pieces, last])
    sent = b"".join(stream.feed(data[i : i + 7]) for i in range(0, len(data), 7))
    found = [json.loads(line[6:])["choices"][0] for line in sent.decode().split("\n\n") if line]
    assert "".join(choice["delta"].get("content", "") for choice in found) == "one EN"
    assert [choice.get("finish_reason") for choice in found][-1] == "stop"


def test_events_of_another_kind_pass():
    for event in (b"data: [DONE]\n\n", b'data: {"error": "no"}\n\n', b": ping\n\n"):
        assert StreamCutter(["x"]).feed(event) == event
