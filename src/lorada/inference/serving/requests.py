"""What a request may say, as OpenAI's API spells it.

Fields that would change the answer, and that no engine here can follow, are refused unless they
have the value that changes nothing. Fields that do not touch the answer are read over.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_PROMPTS, MOST_STOPS, MOST_TURNS = 256, 4, 10_000
Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[int, Field(ge=1, le=1)]
# The first fault of a long list is enough: to describe each takes many times the body's memory.
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(max_length=MOST_PROMPTS, fail_fast=True)]
Prompts = Annotated[list[Ids], Field(max_length=MOST_PROMPTS, fail_fast=True)]
Nothing = Annotated[list[Any], Field(max_length=0)]


class Asked(BaseModel):
    """Fields of both kinds of request."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str
    stream: bool | None = None
    stream_options: "StreamOptions | None" = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
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
    text: str


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None

    def turn(self) -> dict[str, str]:
        """The turn as a chat template takes it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class ChatRequest(Asked):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_TURNS, fail_fast=True)]
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

    prompt: str | Ids | Texts | Prompts
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
