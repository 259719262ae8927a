"""Turns a request into what an engine is asked: a prompt's tokens, and how many may follow."""

from typing import Any

from lorada.inference.generate import check_prompts
from lorada.inference.serving.engines import Ask
from lorada.inference.serving.refusals import Refused
from lorada.inference.serving.requests import ChatRequest, CompletionRequest, Message
from lorada.inference.serving.served import Served
from lorada.tasks.tokenize import prompt_of

LONGEST = 500  # characters of a line that may repeat a prompt


def asks_of(
    served: Served, request: ChatRequest | CompletionRequest, limit: int | None
) -> list[Ask]:
    """What the engine is asked, for each prompt of a request; ``limit`` is of an answer's tokens.

    Raises:
        Refused: for a prompt that the model cannot continue, more tokens than there is room for, or
            log-probabilities where the engine has none.
    """
    wanted = request.logprobs is not None and request.logprobs is not False
    if wanted and not served.engine.has_logprobs:
        said = f"{served.name} is not batched and has no log-probabilities"
        raise Refused(400, said, param="logprobs")
    try:
        if isinstance(request, ChatRequest):
            most, param = request.max_completion_tokens or request.max_tokens, "messages"
            prompts = [_chat_ids(served, request.messages)]
        else:
            most, param = request.max_tokens, "prompt"
            prompts = _ids(served, request.prompt)
    except ValueError as error:  # an empty prompt, or turns that the chat template refuses
        said = " ".join(str(error).split())[:LONGEST]
        raise Refused(400, said, param=param) from error
    return [
        Ask(
            ids=ids,
            most=_most(served, len(ids), most, limit),
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            logprobs=wanted,
        )
        for ids in prompts
    ]


def _chat_ids(served: Served, messages: list[Message]) -> list[int]:
    """The conversation so far in the tokenizer's chat template, which has its special tokens."""
    run = served.run
    if not run.tokenizer.chat_template:
        raise ValueError(f"{served.name} has no chat template: ask /v1/completions")
    turns = [*(message.turn() for message in messages), {"role": "assistant", "content": ""}]
    prompt = prompt_of({"messages": turns}, "messages", run.tokenizer)
    check_prompts(run, [prompt], templated=True)
    ids = run.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    return list(ids)


def _ids(served: Served, prompt: Any) -> list[list[int]]:
    """The tokens of a prompt, or of each in a list; token ids stay as they are."""
    if prompt == []:
        raise ValueError("there is no prompt")
    prompts = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    if isinstance(prompts[0], str):
        check_prompts(served.run, prompts, templated=False)
        return list(served.run.tokenizer(prompts, verbose=False)["input_ids"])
    highest, known = max(map(max, prompts)), served.run.model.config.get_text_config().vocab_size
    if highest >= known:
        raise ValueError(f"{highest} is no token of this model, which has {known}")
    return list(prompts)


def _most(served: Served, read: int, wanted: int | None, limit: int | None) -> int:
    """How many tokens an answer may have behind a prompt of ``read`` tokens.

    Where the request does not say, it is what fits, at most what ``lorada generate`` writes.
    """
    room = left = served.room
    if room is not None:
        apart = served.run.kind == "encoder_decoder"
        left = room if apart else room - read
        if read > room or left < (wanted or 1):
            asked = f" and an answer of {wanted}" if wanted else ""
            raise Refused(
                400, f"a prompt of {read} tokens{asked} does not fit: there is room for {room}"
                + " each" * apart, code="context_length_exceeded",
            )  # fmt: skip
    if wanted is None:
        return min(most for most in (served.most, left, limit) if most is not None)
    if limit is not None and wanted > limit:
        raise Refused(400, f"{wanted} tokens are more than this server writes, {limit}")
    return wanted
