"""What a request may say, as OpenAI's API spells it."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorada.inference.serving.refusals import Refused

MOST_PROMPTS, MOST_STOPS, MOST_TURNS = 256, 4, 10_000
LONGEST = 40  # characters of a wrong value, or of a field's name, that are repeated
# The first fault of a long list is enough: to describe each takes many times the body's memory.
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(max_length=MOST_PROMPTS, fail_fast=True)]
Prompts = Annotated[list[Ids], Field(max_length=MOST_PROMPTS, fail_fast=True)]
Zero = Annotated[float, Field(ge=0, le=0)] | None
Empty = Annotated[list[Any] | dict[str, Any], Field(max_length=0)] | None


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


class Strict(BaseModel):
    """An object in a request: without other fields, and without values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """``stream_options``."""

    include_usage: bool | None = None


class TextFormat(Strict):
    """``response_format``."""

    type: Literal["text"]


class TextPart(Strict):
    """A part of a message; there are no pictures."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None

    def turn(self) -> dict[str, str]:
        """The turn as a chat template takes it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class Request(Strict):
    """Fields of both kinds of request for text.

    Of a field with several types the description says what it must be; else pydantic says it.
    """

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = Field(
        None, description=f"a text, or a list of at most {MOST_STOPS}, or left out"
    )

    # What would change the answer and no batch here can follow: only what changes nothing is taken.
    n: Literal[1] | None = None
    best_of: Literal[1] | None = None
    presence_penalty: Zero = None
    frequency_penalty: Zero = None
    logit_bias: Empty = None
    seed: None = None
    suffix: None = None
    echo: Literal[False] | None = None
    tools: Empty = None
    tool_choice: Literal["none"] | None = None
    top_logprobs: Literal[0] | None = None
    response_format: TextFormat | None = None
    # What does not touch the answer.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    parallel_tool_calls: Any = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer and are not part of it."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(filter(None, found))


class ChatRequest(Request):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(
        description=f"a list of 1 to {MOST_TURNS} turns, each with a role (system, developer, user,"
        " assistant or tool) and a content (a text, or a list of parts of type text)",
        min_length=1, max_length=MOST_TURNS, fail_fast=True,
    )  # fmt: skip
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None


class CompletionRequest(Request):
    """The body of ``POST /v1/completions``: texts to continue, or their tokens.

    ``logprobs`` is a number of other tokens to tell of: 0, for the answer's own alone.
    """

    prompt: str | Ids | Texts | Prompts = Field(
        description=f"a text, a list of token ids, or a list of at most {MOST_PROMPTS} of either"
    )
    logprobs: Literal[0] | None = None


class ClassifyRequest(Strict):
    """The body of ``POST /v1/classify``: texts to label."""

    model: str
    input: str | Texts = Field(description=f"a text, or a list of at most {MOST_PROMPTS}")


AnyRequest = ChatRequest | CompletionRequest | ClassifyRequest
Kind = type[ChatRequest] | type[CompletionRequest] | type[ClassifyRequest]


def request_of(kind: Kind, body: bytes) -> AnyRequest:
    """The request in a body.

    Raises:
        Refused: for another, with the first field that is wrong, what it must be, and what it is.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    if not first["loc"]:
        said = f"the request must be one JSON object: {first['msg']}"
        raise Refused(400, f"{said}; it is {_short(repr(first['input']))}")
    top, named = str(first["loc"][0]), [_named(one) for one in first["loc"][:3]]
    value = "missing" if first["type"] == "missing" else _short(repr(first["input"]))
    description = getattr(kind.model_fields.get(top), "description", None)
    if description is None:
        raise Refused(400, f"{'.'.join(named)}: {first['msg']}; it is {value}", param=named[0])
    # Of turns it is said which is wrong; in other fields that depends on which type is meant.
    where = ".".join(named) if top == "messages" and named[1:] else "it"
    raise Refused(400, f"{top}: must be {description}; {where} is {value}", param=top)


def _named(place: int | str) -> str:
    """A field's name, which may be anything, or a number in a list."""
    return _short(place if isinstance(place, str) and place.isidentifier() else repr(place))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
