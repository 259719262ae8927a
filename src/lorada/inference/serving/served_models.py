"""The models behind the server: the run, and its base under a name of its own."""

import json
import threading
from dataclasses import dataclass, field
from typing import Any

from transformers import GenerationConfig
from transformers.cli.serving.utils import BaseHandler, Modality

from lorada.data.tokenize import context_of
from lorada.inference.serving.requests import Body, Request, RequestError

NEARLY_GREEDY = 1e-4  # a temperature
USUAL_LENGTH = 1024  # of an answer where a request says nothing, as in transformers' server


@dataclass
class ServedModels:
    """The models that clients can name, and how long a text may be.

    Attributes:
        manager: transformers' ``ModelManager``, which has loaded the run.
        run: the name of the run.
        base: the name of its base; None where it is not served. It is loaded at the first request.
        most: the most tokens of an answer.
        template_settings: what the server was told of the chat template when it was started.
    """

    manager: Any
    run: str
    base: str | None
    most: int
    template_settings: dict[str, Any]
    _loaded: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        # The server would answer with one model alone; which names there are is checked here.
        self.manager.force_model = None
        self.load(self.run)

    @property
    def names(self) -> list[str]:
        """What clients may name."""
        return [self.run] if self.base is None else [self.run, self.base]

    def named(self, body: Body) -> str:
        """The model that a request names, the run if it names none.

        Raises:
            RequestError: with the status 404 for a model that is not served.
        """
        name = body.get("model", self.run)
        if name not in self.names:
            raise RequestError(
                f"model={name!r} is not served here: name {' or '.join(self.names)}", "model", 404
            )
        return str(name)

    def load(self, name: str) -> tuple[Any, Any]:
        """A model and its tokenizer, which take the likeliest tokens unless a request draws."""
        with self._lock:
            model, tokenizer = self.manager.load_model_and_processor(name)
            if name not in self._loaded:
                # The server follows the temperature of a request only where the model's own
                # settings draw at all.
                model.generation_config.update(do_sample=True, temperature=NEARLY_GREEDY)
                self._loaded.add(name)
        return model, tokenizer

    def listed(self) -> dict[str, Any]:
        """The answer to ``/v1/models``."""
        kind = {"object": "model", "created": 0, "owned_by": "local"}
        return {"object": "list", "data": [{"id": name, **kind} for name in self.names]}

    def limited(self, route: type[Request], body: Body) -> Body:
        """A checked request with the most tokens that its answer may have.

        Refused are a prompt that the model cannot read, and more tokens than may be written.
        """
        model, tokenizer = self.load(body["model"])
        _refuse_unknown_tokens(body.get("logit_bias", {}), model)
        room = self.most
        prompt_tokens = self._prompt_tokens(body, model, tokenizer)
        context = context_of(model.config)
        if prompt_tokens is not None and context is not None:
            field_name = "prompt" if "prompt" in body else "messages"
            if prompt_tokens >= context:
                raise RequestError(
                    f"{field_name}: {prompt_tokens:,} tokens are more than the model reads, "
                    f"{context:,} with the answer",
                    field_name,
                )
            room = min(room, context - prompt_tokens)
        # Clients of several ages name the limit differently; the server gets it by one name.
        limits = [(name, body.pop(name)) for name in route.limit_fields if name in body]
        if not limits:
            return {**body, route.limit_field: min(room, _usual_length(body))}
        name, count = limits[0]
        if count > self.most:
            raise RequestError(
                f"{name}={count} is above {self.most}, the most that this server writes: its "
                "option --max-tokens says how many",
                name,
            )
        if count > room:
            raise RequestError(
                f"{name}={count} is more than the model has room for behind this prompt: {room}",
                name,
            )
        return {**body, route.limit_field: count}

    def _prompt_tokens(self, body: Body, model: Any, tokenizer: Any) -> int | None:
        """How many tokens the prompt has, as the server will read it; None if it is no text.

        A prompt without tokens, a model without a chat template, and messages that the template
        does not take are refused.
        """
        if "prompt" in body:
            count = len(tokenizer(body["prompt"])["input_ids"])
            if count == 0:
                raise RequestError("prompt has no token that the model knows", "prompt")
            return count
        if getattr(tokenizer, "chat_template", None) is None:
            raise RequestError(
                f"{body['model']} has no chat template: ask it at /v1/completions", "messages"
            )
        modality = self.manager.get_model_modality(model, processor=tokenizer)
        if modality != Modality.LLM or "messages" not in body:
            return None
        for index, turn in enumerate(body["messages"]):
            _refuse_other_parts(index, turn)
        settings = {**self.template_settings, **body.get("chat_template_kwargs", {})}
        try:
            turns = BaseHandler.get_processor_inputs_from_messages(body["messages"], modality)
            ids = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tools=body.get("tools"), tokenize=True,
                return_dict=True, **settings,
            )["input_ids"]  # fmt: skip
        except Exception as error:  # of any kind: a template raises what it likes
            reason = " ".join(str(error).split())[:200]
            raise RequestError(
                f"messages: the chat template does not take them ({reason})", "messages"
            ) from error
        return len(ids)


def _refuse_unknown_tokens(bias: dict[str, float], model: Any) -> None:
    """Refuse a bias for the id of a token that a model cannot write."""
    vocabulary = model.config.get_text_config().vocab_size
    for token in bias:
        if int(token) >= vocabulary:
            raise RequestError(
                f"logit_bias.{token}: the model has {vocabulary:,} tokens, from 0", "logit_bias"
            )


def _refuse_other_parts(index: int, turn: dict[str, Any]) -> None:
    """Refuse what is no text, which the server would leave out for a model of texts."""
    content = turn.get("content")
    if not isinstance(content, list):  # a text, or none in a turn that calls tools
        return
    for part in content:
        if part["type"] != "text":
            where = f"messages.{index}.content"
            raise RequestError(
                f"{where}: a part of type {part['type']!r} is not served here, only text",
                "messages",
            )


def _usual_length(body: Body) -> int:
    """The most tokens of an answer by a request's ``generation_config``, or the usual number.

    A config that is wrong is refused.
    """
    if "generation_config" not in body:
        return USUAL_LENGTH
    try:
        settings = GenerationConfig(**json.loads(body["generation_config"]))
        settings.validate()
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"generation_config is wrong: {reason}", "generation_config") from error
    length = settings.max_new_tokens
    if isinstance(length, int) and length > 0:
        return length
    return USUAL_LENGTH
