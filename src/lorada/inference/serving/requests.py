"""What a request may say, as OpenAI's API spells it, and one line on what is wrong with another.

Fields that would change the answer, and that no engine here can follow, are refused unless they
have the value that changes nothing. Fields that do not touch the answer are read over. The
description of a field says what it must be.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MOST_PROMPTS, MOST_STOPS, MOST_TURNS = 256, 4, 10_000
LONGEST = 40  # characters of a wrong value, or of a field's name, that are repeated
COUNT = "a whole number from 1, or left out"
ONE = "1 or left out, as each prompt has one answer"
PENALTY = "0 or left out, as no model here follows it"
SWITCH = "true or false, or left out"
LOGPROBS = "0 for completions, true or false for chats, or left out"
TOOLS = "left out, as no model here calls tools"
TURN = "a turn: an object with a role and a content"
# The first fault of a long list is enough: to describe each takes many times the body's memory.
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(max_length=MOST_PROMPTS, fail_fast=True)]
Prompts = Annotated[list[Ids], Field(max_length=MOST_PROMPTS, fail_fast=True)]


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        body: bytes of a request.
        tokens: of an answer; None for what the model has room for.
        requests: prompts that are answered or wait at one time.
        seconds: from a request until its end.
        key: what every request under ``/v1`` must bring; None for nothing.
    """

    body: int = 2**20
    tokens: int | None = None
    requests: int = 256
    seconds: float = 600.0
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the time and the key.

        Raises:
            ValueError: for a time without end, or a key that is empty, as an unset variable gives,
                or that no client can send; without the key, which is a secret.
        """
        if not math.isfinite(self.seconds):
            raise ValueError(f"--timeout {self.seconds} has no end: pass seconds, such as 600")
        if self.key is not None and not (self.key and all("!" <= s <= "~" for s in self.key)):
            raise ValueError(
                "--api-key is empty, or has a blank or a sign that is not ASCII: pass another, or "
                "none to ask for no key"
            )


def must_be(what: str, **limits: Any) -> Any:
    """A field that may be left out."""
    return Field(None, description=what, **limits)


class Strict(BaseModel):
    """An object of a request: no other fields, and no values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """``stream_options``."""

    include_usage: bool | None = must_be(SWITCH)


class TextFormat(Strict):
    """``response_format``; there is no other."""

    type: Literal["text"] = Field(description="text, as models here write nothing else")


class TextPart(TextFormat):
    """A part of a message; there are no pictures."""

    text: str


class Message(Strict):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="system, developer, user, assistant or tool"
    )
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] = Field(
        description="a text, or a list of parts of type text"
    )
    name: str | None = must_be("a text or left out")

    def turn(self) -> dict[str, str]:
        """The turn as a chat template takes it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class Asked(Strict):
    """Fields of both kinds of request."""

    model: str = Field(description="a name that /v1/models lists")
    stream: bool | None = must_be(SWITCH)
    stream_options: StreamOptions | None = must_be("an object with include_usage, or left out")
    max_tokens: int | None = must_be(COUNT, ge=1)
    temperature: float | None = must_be("a number from 0 to 2, or left out", ge=0, le=2)
    top_p: float | None = must_be("a number above 0 and up to 1, or left out", gt=0, le=1)
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = must_be(
        f"a text, or a list of at most {MOST_STOPS}, or left out"
    )
    # Of these only the values that change nothing.
    n: int | None = must_be(ONE, ge=1, le=1)
    presence_penalty: float | None = must_be(PENALTY, ge=0, le=0)
    frequency_penalty: float | None = must_be(PENALTY, ge=0, le=0)
    logit_bias: dict[str, Any] | None = must_be(
        "empty or left out, as no model here follows it", max_length=0
    )
    seed: None = must_be("left out, as requests are sampled together")
    # They do not touch the answer.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer and are not part of it."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(filter(None, found))


class ChatRequest(Asked):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(
        description=f"a list of 1 to {MOST_TURNS} turns, each with a role and a content",
        min_length=1, max_length=MOST_TURNS, fail_fast=True,
    )  # fmt: skip
    max_completion_tokens: int | None = must_be(COUNT, ge=1)
    logprobs: bool | None = must_be(LOGPROBS)
    top_logprobs: int | None = must_be(
        "0 or left out, as only the tokens of the answer have log-probabilities", ge=0, le=0
    )
    response_format: TextFormat | None = must_be("an object of type text, or left out")
    tools: list[Any] | None = must_be(TOOLS, max_length=0)
    tool_choice: Literal["none"] | None = must_be(TOOLS)
    parallel_tool_calls: Any = None


class CompletionRequest(Asked):
    """The body of ``POST /v1/completions``: texts to continue, or their tokens."""

    prompt: str | Ids | Texts | Prompts = Field(
        description=f"a text, a list of token ids, or a list of at most {MOST_PROMPTS} of either"
    )
    logprobs: int | None = must_be(LOGPROBS, ge=0, le=0)
    echo: Literal[False] | None = must_be("false or left out, as answers never repeat the prompt")
    best_of: int | None = must_be(ONE, ge=1, le=1)
    suffix: None = must_be("left out, as models here only continue texts")

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, as a list also where there is one."""
        alone = isinstance(self.prompt, str) or isinstance((self.prompt or [""])[0], int)
        return [self.prompt] if alone else self.prompt  # type: ignore[list-item, return-value]


CHOICES = ("prompt", "stop", "content")  # what of them is wrong depends on which type is meant
MUST_BE = {
    name: found.description
    for kind in (ChatRequest, CompletionRequest, Message, StreamOptions, TextFormat)
    for name, found in kind.model_fields.items()
}


def what_is_wrong(error: ValidationError) -> tuple[str, str | None]:
    """One line on the first fault of a request, and the field that has it."""
    first = error.errors(include_url=False)[0]
    kind, value, places = first["type"], _short(first["input"]), first["loc"]
    if kind == "json_invalid":
        return f"the request is not JSON: {first['ctx']['error']}; send one object", None
    if not places:
        return f"the request must be one JSON object; it is {value}", None
    places = places[: next((n for n, at in enumerate(places, start=1) if at in CHOICES), None)]
    shown, last = [_named(place) for place in places], places[-1]
    if kind == "extra_forbidden":
        said = f"must be left out, as there is no such field; it is {value}"
    elif kind == "missing":
        said = f"is missing; it must be {MUST_BE[str(last)]}"
    else:
        said = f"must be {TURN if isinstance(last, int) else MUST_BE[last]}; it is {value}"
    return f"{'.'.join(shown)}: {said}", shown[0]


def _named(place: int | str) -> str:
    """A field's name, which may be anything, or a number in a list."""
    usual = isinstance(place, int) or (place.isidentifier() and len(place) <= LONGEST)
    return str(place) if usual else _short(place)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
