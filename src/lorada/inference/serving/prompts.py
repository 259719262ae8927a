"""Turns a request into what a batch is asked: a prompt's tokens, and how many may follow."""

from typing import Any

from lorada.inference.generate import chat_prompt, tokens_of
from lorada.inference.serving.refusals import Refused
from lorada.inference.serving.requests import ChatRequest, CompletionRequest, Message
from lorada.inference.serving.served import Ask, Served

LONGEST = 500  # characters of a line that may repeat a prompt
# Colder requests take the likeliest token: scores over a smaller number may be infinite in fp32,
# and what is not a number ends a batch for all its requests.
COLDEST = 1e-6


def asks_of(
    served: Served, request: ChatRequest | CompletionRequest, limit: int | None
) -> list[Ask]:
    """What is asked for each prompt of a request; ``limit`` is of an answer's tokens.

    Raises:
        Refused: for a prompt that the model cannot continue, or more tokens than there is room for.
    """
    most, param = request.max_tokens, "prompt"
    try:
        if isinstance(request, ChatRequest):
            most, param = request.max_completion_tokens or most, "messages"
            prompts = [_chat_ids(served, request.messages)]
        else:
            prompts = _ids(served, request.prompt)
    except ValueError as error:  # an empty prompt, or turns that the chat template refuses
        said = " ".join(str(error).split())[:LONGEST]
        raise Refused(400, said, param=param) from error
    rule = {}
    if (heat := request.temperature or 0.0) >= COLDEST:
        rule = {"temperature": heat, "top_p": 1.0 if request.top_p is None else request.top_p}
    logprobs = request.logprobs is not None and request.logprobs is not False
    return [Ask(ids, _most(served, len(ids), most, limit), rule, logprobs) for ids in prompts]


def _chat_ids(served: Served, messages: list[Message]) -> list[int]:
    """The conversation so far in the tokenizer's chat template, which has its special tokens."""
    run = served.run
    if not run.tokenizer.chat_template:
        raise ValueError(f"{served.name} has no chat template: ask /v1/completions")
    prompt = chat_prompt(run, [message.turn() for message in messages])
    return tokens_of(run, [prompt], None, templated=True)[0]


def _ids(served: Served, prompt: Any) -> list[list[int]]:
    """The tokens of a prompt, or of each in a list; token ids stay as they are."""
    if prompt == []:
        raise ValueError("there is no prompt")
    prompts = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    if isinstance(prompts[0], str):
        return tokens_of(served.run, prompts, None, templated=False)
    highest, known = max(map(max, prompts)), served.run.model.config.get_text_config().vocab_size
    if highest >= known:
        raise ValueError(f"{highest} is no token of this model, which has {known}")
    return list(prompts)


def _most(served: Served, read: int, wanted: int | None, limit: int | None) -> int:
    """How many tokens an answer may have behind a prompt of ``read`` tokens.

    Where the request does not say, it is what fits, at most what ``lorada generate`` writes.
    """
    left = None if served.room is None else served.room - read
    if left is not None and left < (wanted or 1):
        asked = f" and an answer of {wanted}" if wanted else ""
        raise Refused(
            400, f"a prompt of {read} tokens{asked} does not fit: there is room for {served.room}",
            code="context_length_exceeded",
        )  # fmt: skip
    if wanted is None:
        return min(most for most in (served.most, left, limit) if most is not None)
    if limit is not None and wanted > limit:
        raise Refused(400, f"{wanted} tokens are more than this server writes, {limit}")
    return wanted
