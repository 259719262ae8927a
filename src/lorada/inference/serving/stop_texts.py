"""Takes a stop text, and what is behind it, out of an answer, whole or as a stream.

The model has to write a stop text before it can be seen, and transformers' server sends it too. A
stream keeps back what may be the beginning of one until the next piece has shown whether it is.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

Answer = dict[str, Any]


class Cutter:
    """Passes on the pieces of one text up to the first stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.ended = False  # whether a stop text has come
        self._held_back = ""  # the end of the text so far, which may begin a stop text

    def feed(self, piece: str) -> str:
        """What of the text so far may be shown now."""
        if self.ended:
            return ""
        text = self._held_back + piece
        starts = [start for start in map(text.find, self.stops) if start >= 0]
        if starts:
            self.ended = True
            self._held_back = ""
            return text[: min(starts)]
        safe_length = len(text) - self._possible_beginning(text)
        self._held_back = text[safe_length:]
        return text[:safe_length]

    def rest(self) -> str:
        """What was kept back, and turned out to be the text's end."""
        rest, self._held_back = self._held_back, ""
        return rest

    def _possible_beginning(self, text: str) -> int:
        """How many characters at the end of a text may begin a stop text."""
        longest = max(map(len, self.stops)) - 1
        for count in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self.stops):
                return count
        return 0


def cut_answer(body: bytes, stops: Sequence[str]) -> bytes:
    """A whole answer without stop texts."""
    answer: Answer = json.loads(body)
    for choice in answer.get("choices", []):
        holder, name = _text_of(choice)
        if holder.get(name):  # a call of a tool has no text
            cutter = Cutter(stops)
            holder[name] = cutter.feed(holder[name]) + cutter.rest()
            _say_stopped(choice, cutter)
    return _encoded(answer)


class StreamCutter:
    """Takes stop texts out of a stream of server-sent events."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._cutter = Cutter(stops)
        self._unread = b""

    def feed(self, data: bytes) -> bytes:
        """The events that may be sent now."""
        *events, self._unread = (self._unread + data).split(b"\n\n")
        sent = b""
        for event in events:
            for line in self._cut(event):
                sent += line + b"\n\n"
        return sent

    def _cut(self, event: bytes) -> Iterator[bytes]:
        mark = b"data: "
        try:
            answer: Answer = json.loads(event.removeprefix(mark))
            (choice,) = answer["choices"]
        except (ValueError, KeyError, TypeError):  # of another kind, such as [DONE] or an error
            yield event
            return
        holder, name = _text_of(choice)
        if choice.get("finish_reason") is not None:
            rest = self._cutter.rest()
            if rest:  # a piece of its own before the last event, which has no text
                yield mark + _encoded(_with_text(answer, rest))
            _say_stopped(choice, self._cutter)
        elif holder.get(name):
            holder[name] = self._cutter.feed(holder[name])
            if not holder[name]:
                return
        yield mark + _encoded(answer)


def _text_of(choice: Answer) -> tuple[Answer, str]:
    """Where the text of a choice stands: the record and the name in it."""
    for name in ("message", "delta"):
        if name in choice:
            return choice[name], "content"
    return choice, "text"


def _with_text(answer: Answer, text: str) -> Answer:
    """A copy of a stream's last event as a piece of text."""
    (choice,) = answer["choices"]
    piece: Answer = {"index": 0}
    if "delta" in choice:
        piece["delta"] = {"content": text}
    else:
        piece["text"] = text
    # How many tokens were used is said once, by the last event.
    fields = {key: value for key, value in answer.items() if key != "usage"}
    return {**fields, "choices": [piece]}


def _say_stopped(choice: Answer, cutter: Cutter) -> None:
    """The reason is "length" where the stop text was the last that was allowed."""
    if cutter.ended and choice.get("finish_reason") == "length":
        choice["finish_reason"] = "stop"


def _encoded(answer: Answer) -> bytes:
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
