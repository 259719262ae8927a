"""Generates text with a finished run: it continues prompts."""

import logging
from typing import Any

import torch

from lorada.runs.data.dataset import context_of
from lorada.runs.data.rows import protocol_settings
from lorada.runs.inference.load import Run
from lorada.runs.models.generation import language_settings, refuse_long
from lorada.runs.plain_yaml import refuse_unstorable
from lorada.support.errors import out_of_memory
from lorada.support.progress import progress_bar
from lorada.tasks.rows import HEADED, Row
from lorada.tasks.task import Protocol
from lorada.tasks.tokenize import prompt_of

logger = logging.getLogger(__name__)


def continue_prompts(run: Run, prompts: list[str], max_new_tokens: int | None = None) -> list[str]:
    """Continue a user's prompts, as turns of a chat if the run was trained on chats."""
    if run.form != "messages":
        return generate(run, prompts, max_new_tokens=max_new_tokens)
    turns: list[Row] = [
        {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": ""}]}
        for p in prompts
    ]
    prompts = [prompt_of(row, "messages", run.tokenizer) for row in turns]
    return generate(run, prompts, templated=True, max_new_tokens=max_new_tokens)


def generate(
    run: Run,
    prompts: list[str],
    *,
    templated: bool = False,
    max_new_tokens: int | None = None,
    protocol: Protocol | None = None,
) -> list[str]:
    """Continue prompts, with the generation settings of a protocol.

    Args:
        run: the run.
        prompts: texts to continue; too long ones lose their beginning (an encoder–decoder's, their
            end), with a warning.
        templated: whether the prompts already have special tokens, from a chat template.
        max_new_tokens: most tokens to generate; None for the recipe's number.
        protocol: has the generation settings; None for the protocol of the run's first task.

    Returns:
        The continuations, without the prompts.

    Raises:
        ValueError: for a model that cannot generate, a prompt that is empty or not valid text, or
            more tokens than the model has room for.
    """
    if run.form in HEADED:
        what = f"a classifier of {', '.join(run.labels)}" if run.labels else "a scorer"
        raise ValueError(f"{run.folder} is {what}: it has no text")
    _check_prompts(run, prompts, templated=templated)
    settings = protocol_settings(run.recipe, protocol or run.protocol)
    settings |= language_settings(run.tokenizer)
    if max_new_tokens is not None:
        settings["max_new_tokens"] = max_new_tokens
    room = _room_for_prompts(run, settings["max_new_tokens"])
    # Prompts of similar length share a batch. The longest come first, to run out of memory early.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    tokenizer, size = run.tokenizer, run.recipe.eval_batch_size
    sides = tokenizer.padding_side, tokenizer.truncation_side
    if run.kind == "decoder":
        tokenizer.padding_side = tokenizer.truncation_side = "left"
    outputs: dict[int, str] = {}
    cut = 0
    try:
        for start in progress_bar(range(0, len(order), size), "Generating"):
            chosen = order[start : start + size]
            chunk = [prompts[i] for i in chosen]
            batch, longer = _tokens(run, chunk, room, templated=templated)
            cut += longer
            outputs.update(zip(chosen, _continue(run, batch, settings), strict=True))
    finally:
        tokenizer.padding_side, tokenizer.truncation_side = sides
    if cut:
        end = "beginning" if run.kind == "decoder" else "end"
        logger.warning("%d of %d prompts lost their %s to fit the model", cut, len(prompts), end)
    return [outputs[i] for i in range(len(prompts))]


def _check_prompts(run: Run, prompts: list[str], *, templated: bool) -> None:
    # An encoder–decoder can read an empty text if its tokenizer adds special tokens; XSum has some.
    marked = run.kind == "encoder_decoder" and run.tokenizer("")["input_ids"]
    if not all(prompts) and not marked:
        raise ValueError("a prompt is empty: there is nothing to continue")
    refuse_unstorable("prompt", prompts)
    # A tokenizer may drop unknown characters or white space, which can leave no token.
    special = {"add_special_tokens": not templated, "verbose": False}
    found = run.tokenizer(prompts, **special)["input_ids"] if prompts else []
    for prompt, ids in zip(prompts, found, strict=True):
        if not ids:
            raise ValueError(
                f"the prompt {prompt!r} has no token that this model knows: there is nothing to "
                "continue"
            )


def _room_for_prompts(run: Run, limit: int) -> int | None:
    """How many tokens a prompt may have; None for any number."""
    context = context_of(run.model.config)
    if run.kind == "encoder_decoder":
        refuse_long(limit, context)
        return run.recipe.max_length
    if context is None:
        return None
    if limit >= context:
        raise ValueError(
            f"max_new_tokens={limit} leaves no room for a prompt: the model's context is "
            f"{context} tokens"
        )
    return context - limit


def _tokens(run: Run, prompts: list[str], room: int | None, *, templated: bool) -> tuple[Any, int]:
    """A batch of prompts, and how many of them were cut."""
    special = not templated
    most: dict[str, Any] = {} if room is None else {"truncation": True, "max_length": room}
    batch = run.tokenizer(
        prompts, return_tensors="pt", padding=True, add_special_tokens=special, **most
    ).to(run.device)
    batch.pop("token_type_ids", None)
    if room is None or batch["input_ids"].shape[1] < room:
        return batch, 0
    whole = run.tokenizer(prompts, add_special_tokens=special)["input_ids"]
    return batch, sum(len(ids) > room for ids in whole)


def _continue(run: Run, batch: Any, settings: dict[str, Any]) -> list[str]:
    if "stop_strings" in settings:
        settings = {**settings, "tokenizer": run.tokenizer}
    try:
        with torch.no_grad():
            ids = run.model.generate(
                **batch, do_sample=False, pad_token_id=run.tokenizer.pad_token_id, **settings
            )
    except (TypeError, AttributeError, RuntimeError) as error:  # unchecked settings fail here
        if out_of_memory(error):
            raise
        raise ValueError(
            f"{run.folder} cannot generate ({error}): a setting in its model's "
            "generation_config.json may be damaged"
        ) from error
    # A decoder repeats the prompt in its output; an encoder–decoder does not.
    new = ids if run.kind == "encoder_decoder" else ids[:, batch["input_ids"].shape[1] :]
    texts: list[str] = run.tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts
