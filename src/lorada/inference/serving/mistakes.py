"""One line on what is wrong with a request: the field, what it must be, and what it is."""

from typing import Any

from pydantic import ValidationError

from lorada.inference.serving.requests import MOST_PROMPTS, MOST_STOPS, MOST_TURNS

LONGEST = 40  # characters of a wrong value, or of a field's name, that are repeated
COUNT = "a whole number from 1, or left out"
ONE = "1 or left out, as each prompt has one answer"
PENALTY = "0 or left out, as no model here follows it"
TOOLS = "left out, as no model here calls tools"
TURN = "a turn: an object with a role and a content"
CHOICES = ("prompt", "stop", "content")  # what of them is wrong depends on which type is meant
MEANT = {
    "model": "a name that /v1/models lists",
    "prompt": f"a text, a list of token ids, or a list of at most {MOST_PROMPTS} of either",
    "messages": f"a list of 1 to {MOST_TURNS} turns, each with a role and a content",
    "role": "system, developer, user, assistant or tool",
    "content": "a text, or a list of parts of type text",
    "name": "a text or left out",
    "max_tokens": COUNT,
    "max_completion_tokens": COUNT,
    "temperature": "a number from 0 to 2, or left out",
    "top_p": "a number above 0 and up to 1, or left out",
    "stop": f"a text, or a list of at most {MOST_STOPS}, or left out",
    "stream": "true or false, or left out",
    "stream_options": "an object with include_usage, or left out",
    "include_usage": "true or false, or left out",
    "logprobs": "0 for completions, true or false for chats, or left out",
    "top_logprobs": "0 or left out, as only the tokens of the answer have log-probabilities",
    "n": ONE,
    "best_of": ONE,
    "echo": "false or left out, as answers never repeat the prompt",
    "seed": "left out, as requests are sampled together",
    "suffix": "left out, as models here only continue texts",
    "presence_penalty": PENALTY,
    "frequency_penalty": PENALTY,
    "logit_bias": "empty or left out, as no model here follows it",
    "response_format": "an object of type text, or left out",
    "type": "text, as models here write nothing else",
    "tools": TOOLS,
    "tool_choice": TOOLS,
}


def what_is_wrong(error: ValidationError) -> tuple[str, str | None]:
    """One line on the first fault of a request, and the field that has it."""
    first = error.errors(include_url=False)[0]
    kind, value, places = first["type"], _short(first["input"]), list(first["loc"])
    if kind == "json_invalid":
        return f"the request is not JSON: {first['ctx']['error']}; send one object", None
    if not places:
        return f"the request must be one JSON object; it is {value}", None
    choice = next((place for place in places if place in CHOICES), None)
    if choice is not None:
        places = places[: places.index(choice) + 1]
    shown, last = [_named(place) for place in places], places[-1]
    if kind == "extra_forbidden":
        said = f"must be left out, as there is no such field; it is {value}"
    elif kind == "missing":
        said = f"is missing; it must be {MEANT[str(last)]}"
    else:
        said = f"must be {TURN if isinstance(last, int) else MEANT[last]}; it is {value}"
    return f"{'.'.join(shown)}: {said}", shown[0]


def _named(place: int | str) -> str:
    """A field's name, which may be anything, or a number in a list."""
    usual = isinstance(place, int) or (place.isidentifier() and len(place) <= LONGEST)
    return str(place) if usual else _short(place)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
