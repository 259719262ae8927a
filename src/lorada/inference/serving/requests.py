"""What a request to the server may say: a record for each route, and what is wrong with a request.

transformers' server ends in an error of its own at a wrong value, and leaves out in silence what it
does not know how to do. Here each field is checked, and one that cannot be followed is refused.
"""

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lorada.support.error_messages import first_problem

Body = dict[str, Any]
# Of field → the values of it that change nothing. Any other value cannot be followed.
Neutral = dict[str, tuple[Any, ...]]

# Fields that are about the client or the billing, and never about the answer.
WITHOUT_EFFECT = (
    "metadata", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "stream_options", "user",
)  # fmt: skip

MOST_STOPS, LONGEST_STOP = (
    16,
    256,
)  # texts and characters: the server searches for all at each token
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class RequestError(ValueError):
    """What is wrong with a request: a sentence, and the name of the field."""

    def __init__(self, sentence: str, field: str | None = None, status: int = 400) -> None:
        super().__init__(sentence)
        self.field, self.status = field, status


class Record(BaseModel):
    """A record that takes no value for another type's, and no unknown name."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Function(BaseModel):
    """The name of a function; whatever else stands beside it is for the chat template."""

    name: Annotated[str, Field(min_length=1, strict=True)]


class Tool(BaseModel):
    """A tool that an answer may call."""

    type: Literal["function"] = "function"
    function: Function


class Part(BaseModel):
    """A part of a turn's content."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: str
    text: str | None = None

    @model_validator(mode="after")
    def _has_text(self) -> Self:
        """Refuse a part of a turn that says it is a text, and has none."""
        if self.type == "text" and self.text is None:
            raise ValueError("a part of type text needs a text")
        return self


class Turn(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Annotated[str, Field(min_length=1)]
    content: str | list[Part] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        """Refuse a turn without a content or a call of a tool."""
        if self.content is None and not self.tool_calls:
            raise ValueError("a turn needs a content, or tool_calls")
        return self


class Request(Record):
    """The fields that all routes have."""

    neutral: ClassVar[Neutral] = {}
    limit_field: ClassVar[str] = "max_tokens"  # which the server reads
    limit_fields: ClassVar[tuple[str, ...]] = ("max_tokens",)  # which a client may give; first wins

    model: str | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    generation_config: str | None = None

    @field_validator("generation_config")
    @classmethod
    def _is_object(cls, text: str | None) -> str | None:
        """Refuse the arguments of a tool that are no JSON object."""
        if text is not None and not isinstance(json.loads(text), dict):
            raise ValueError("must be a JSON object, written as a string")
        return text


class WritingRequest(Request):
    """The fields of both routes that OpenAI calls completions."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    # The server takes it for a repetition penalty of 1 + this, which must be above 0.
    frequency_penalty: Annotated[float, Field(gt=-1, le=2)] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _can_be_found(cls, stop: Any) -> Any:
        """Refuse ``stop`` texts that are too many, too long or empty."""
        stops = [stop] if isinstance(stop, str) else stop
        texts = isinstance(stops, list) and all(isinstance(text, str) for text in stops)
        counts = texts and 1 <= len(stops) <= MOST_STOPS
        if not counts or not all(1 <= len(text) <= LONGEST_STOP for text in stops):
            raise ValueError(
                f"must be a text of 1 to {LONGEST_STOP} characters, or 1 to {MOST_STOPS} of them"
            )
        return stop


class ChatRequest(WritingRequest):
    """``/v1/chat/completions``."""

    neutral: ClassVar[Neutral] = {
        "audio": (), "function_call": ("auto", "none"), "functions": ([],), "logprobs": (False,),
        "modalities": (["text"],), "moderation": (), "n": (1,), "parallel_tool_calls": (True,),
        "presence_penalty": (0,), "reasoning_effort": (), "response_format": ({"type": "text"},),
        "tool_choice": ("auto", "none"), "top_logprobs": (0,), "verbosity": (),
        "web_search_options": (),
    }  # fmt: skip
    limit_field: ClassVar[str] = "max_completion_tokens"
    limit_fields: ClassVar[tuple[str, ...]] = ("max_completion_tokens", "max_tokens")

    messages: Annotated[list[Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Bias] | None = None
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(WritingRequest):
    """``/v1/completions``."""

    neutral: ClassVar[Neutral] = {
        "best_of": (1,), "echo": (False,), "logit_bias": ({},), "logprobs": (), "n": (1,),
        "presence_penalty": (0,), "suffix": ("",),
    }  # fmt: skip

    prompt: Annotated[str, Field(min_length=1)]


class ResponseRequest(Request):
    """``/v1/responses``."""

    neutral: ClassVar[Neutral] = {
        "access_programs": (), "background": (False,), "background_options": (),
        "context_management": (), "conversation": (), "image": (), "include": ([],),
        "max_tool_calls": (), "moderation": (), "previous_response_id": (), "prompt": (),
        "parallel_tool_calls": (True, False), "reasoning": (),
        "text": ({}, {"format": {"type": "text"}}), "tool_choice": ("auto", "none"),
        "top_logprobs": (0,), "truncation": ("disabled",),
    }  # fmt: skip
    limit_field: ClassVar[str] = "max_output_tokens"
    limit_fields: ClassVar[tuple[str, ...]] = ("max_output_tokens",)

    input: (
        Annotated[str, Field(min_length=1)] | Annotated[list[dict[str, Any]], Field(min_length=1)]
    )
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: list[dict[str, Any]] | None = None


ROUTES: dict[str, type[Request]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponseRequest,
}


def read_body(text: bytes) -> Body:
    """The fields of a request that have a value.

    Raises:
        RequestError: for a text that is no JSON object.
    """
    try:
        body = json.loads(text)
    except ValueError as error:
        raise RequestError(f"the request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestError("the request is not a JSON object")
    return {name: value for name, value in body.items() if value is not None}


def checked_fields(route: type[Request], body: Body) -> Body:
    """The fields of a request that the server follows; one that it cannot follow is refused."""
    followed = {name: value for name, value in body.items() if name not in WITHOUT_EFFECT}
    for name, allowed in route.neutral.items():
        if name not in followed:
            continue
        value = followed.pop(name)
        if value not in allowed:
            raise RequestError(f"{name}={_shown(value)} is not served here: leave it out", name)
        if name == "tool_choice" and value == "none":
            followed.pop("tools", None)
    unknown = sorted(followed.keys() - route.model_fields.keys())
    if unknown:
        raise RequestError(
            f"{unknown[0]} is no field that is served here: leave it out", unknown[0]
        )
    try:
        route.model_validate(followed)
    except ValidationError as error:
        raise _in_one_line(error) from error
    return followed


# In the place of an error, beside numbers; pydantic names each type a value might have had, too.
INNER = ("content", "function", "name", "role", "text", "tool_calls", "type")


def _in_one_line(error: ValidationError) -> RequestError:
    """An error (returned, not raised) for a request: its first wrong field, and what it must be."""
    place, problem = first_problem(error)
    name, *inside = place.split(".")
    # pydantic also names the types that it tried; only keys and indices of the request are shown.
    where = ".".join([name, *(part for part in inside if part.isdigit() or part in INNER)])
    first = error.errors()[0]
    if first["type"] == "missing":
        return RequestError(f"{where} is missing", name)
    problem = problem.removeprefix("value error, ").replace("input should be", "must be")
    problem = problem.partition(" or instance of ")[0]  # a class of this file
    return RequestError(f"{where}={_shown(first['input'])}: {problem}", name)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
