"""What a request may say, as OpenAI's API spells it.

Fields that would change the answer, and that no engine here can follow, are refused unless they
have the value that changes nothing. Fields that do not touch the answer are read over.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Text = Annotated[str, Field(max_length=1_000_000)]
Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[int, Field(ge=1, le=1)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Nothing = Annotated[list[Any], Field(max_length=0)]
MOST_PROMPTS = 256
LONGEST = 40  # characters of a wrong value that are repeated


class Asked(BaseModel):
    """Fields of both kinds of request."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: Text
    stream: bool | None = None
    stream_options: "StreamOptions | None" = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    # Of these only the values that change nothing.
    n: One | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    seed: None = None
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


class StreamOptions(BaseModel):
    """``stream_options``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None


class TextPart(BaseModel):
    """A part of a message; there are no pictures."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart]
    name: str | None = None

    def turn(self) -> dict[str, str]:
        """The turn as a chat template takes it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class ChatRequest(Asked):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    response_format: "TextFormat | None" = None
    tools: Nothing | None = None
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: Any = None

    @property
    def most(self) -> int | None:
        """Tokens of the answer at most."""
        return self.max_completion_tokens or self.max_tokens


class TextFormat(BaseModel):
    """``response_format``; there is no other."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]


class CompletionRequest(Asked):
    """The body of ``POST /v1/completions``: texts to continue, or their tokens."""

    prompt: Text | Ids | Annotated[list[Text] | list[Ids], Field(max_length=MOST_PROMPTS)]
    logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    echo: Literal[False] | None = None
    best_of: One | None = None
    suffix: None = None

    @property
    def most(self) -> int | None:
        """Tokens of the answer at most."""
        return self.max_tokens

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, as a list also where there is one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]


# What fields may be that several types fit, or none but nothing.
MEANT = {
    "prompt": "a text, a list of token ids, or a list of either",
    "stop": "a text, or a list of at most 4",
    "content": "a text, or a list of parts of type text",
    "seed": "left out: requests are sampled together",
    "suffix": "left out: models here only continue texts",
}


def what_is_wrong(error: ValidationError) -> tuple[str, str | None]:
    """One line on the first fault of a body, and the field that has it."""
    first = error.errors(include_url=False)[0]
    places = list(first["loc"])
    if not places:
        return first["msg"], None
    named = next((place for place in places if place in MEANT), None)
    if named is not None:
        places = places[: places.index(named) + 1]
        said = f"must be {MEANT[str(named)]}"
    else:
        said = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        if first["type"] != "missing":
            said += f", not {_short(first['input'])}"
    return f"{'.'.join(map(str, places))}: {said}", str(places[0])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
