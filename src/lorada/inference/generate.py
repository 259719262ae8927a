"""Generates text with a finished run: it continues prompts."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers.generation import StopStringCriteria

from lorada.data.dataset import context_of
from lorada.data.task import Protocol
from lorada.data.task_rows import protocol_settings
from lorada.data.tokenize import ends_texts, prompt_of, without_end
from lorada.inference.can_refill import end_tokens, reason_against
from lorada.inference.load import Run
from lorada.inference.refilled_batch import Writer, write_answers
from lorada.runs.recipe import refuse_unstorable
from lorada.runs.result import refuse_no_text
from lorada.support.errors import out_of_memory
from lorada.support.progress import progress_bar
from lorada.support.row_sources import Row
from lorada.training.models.loading import language_settings, refuse_long

logger = logging.getLogger(__name__)


class Text(NamedTuple):
    """A text that a model wrote, and whether it was cut at the limit: nothing had ended it."""

    text: str
    cut: bool


def continue_prompts(run: Run, prompts: list[str], max_new_tokens: int | None = None) -> list[str]:
    """Continue a user's prompts, as turns of a chat if the run was trained on chats."""
    chats = run.form == "messages"
    if chats:
        prompts = [chat_prompt(run, [{"role": "user", "content": prompt}]) for prompt in prompts]
    return generate(run, prompts, templated=chats, max_new_tokens=max_new_tokens)


def chat_prompt(run: Run, turns: list[Row]) -> str:
    """The text that the answer to a conversation's last turn starts from, by the chat template."""
    whole = [*turns, {"role": "assistant", "content": ""}]
    return prompt_of({"messages": whole}, "messages", run.tokenizer)


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
    settings = generation_settings(run, max_new_tokens, protocol)
    parts = [range(len(prompts))]
    outputs = dict(generate_parts(run, prompts, parts, settings, templated=templated))
    cut = sum(one.cut for one in outputs.values())
    if cut and max_new_tokens is None:
        limit = settings["max_new_tokens"]
        logger.warning("%d of %d answers were cut at %d tokens", cut, len(prompts), limit)
    return [outputs[i].text for i in range(len(prompts))]


def generate_parts(
    run: Run,
    prompts: list[str],
    parts: Sequence[range],
    settings: dict[str, Any],
    *,
    templated: bool = False,
) -> Iterator[tuple[int, Text]]:
    """Continue some parts of prompts, one part after the other; all are checked at once.

    Returns:
        Indices of prompts with their continuations; within a part in any order.

    Raises:
        ValueError: as ``generate`` does.
    """
    room = room_for_prompts(run, settings["max_new_tokens"])
    tokens = tokens_of(run, prompts, room, templated=templated)
    way = _refilled if reason_against(run, settings) is None else _padded
    answers = (
        (part[i], Text(text, _is_cut(run, ids, text, settings)))
        for part in parts
        for i, ids, text in way(run, [tokens[j] for j in part], settings)
    )
    return iter(progress_bar(answers, "Generating", total=sum(map(len, parts))))


def _is_cut(run: Run, ids: list[int], text: str, settings: dict[str, Any]) -> bool:
    """Whether a text is as long as it may be, with nothing that ends it; pads may be behind it."""
    # An encoder–decoder's ids begin with the one that its decoder starts from.
    written = ids[1:] if run.kind == "encoder_decoder" else ids
    limit, config = settings["max_new_tokens"], run.model.generation_config
    # An end that is forced upon the last token ends nothing.
    own = written[: limit - 1] if getattr(config, "forced_eos_token_id", None) else written
    ends = settings.get("eos_token_id", [])
    stopped = any(string in text for string in settings.get("stop_strings") or [])
    return len(written) >= limit and not stopped and not set(ends) & set(own)


def _refilled(
    run: Run, prompts: list[list[int]], settings: dict[str, Any]
) -> Iterator[tuple[int, list[int], str]]:
    """Answer prompts in a batch that is refilled, as they end: indices, token ids and answers."""
    model = run.model.get_base_model() if isinstance(run.model, PeftModel) else run.model
    tokens = torch.tensor(settings.get("eos_token_id", []), dtype=torch.long, device=run.device)
    strings = settings.get("stop_strings")
    found = StopStringCriteria(run.tokenizer, strings) if strings else None

    def ended(ids: Tensor) -> Tensor:
        last = torch.isin(ids[:, -1], tokens)
        return last if found is None else last | found(ids, None)

    writer = Writer(
        model, ended, settings["max_new_tokens"], run.tokenizer.pad_token_id,
        run.recipe.eval_batch_size,
    )  # fmt: skip
    with _damaged_settings_in_one_line(run):
        for index, ids in write_answers(writer, prompts):
            yield index, ids.tolist(), run.tokenizer.decode(ids, skip_special_tokens=True)


def _padded(
    run: Run, prompts: list[list[int]], settings: dict[str, Any]
) -> Iterator[tuple[int, list[int], str]]:
    """Answer prompts in padded batches with transformers' ``generate``; as ``_refilled`` does."""
    # Prompts of similar length share a batch. The longest come first, to run out of memory early.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    size = run.recipe.eval_batch_size
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batch = padded(run, [prompts[i] for i in chosen])
        new = continue_batch(run, batch, settings)
        texts = run.tokenizer.batch_decode(new, skip_special_tokens=True)
        yield from zip(chosen, new.tolist(), texts, strict=True)


def generation_settings(
    run: Run, max_new_tokens: int | None = None, protocol: Protocol | None = None
) -> dict[str, Any]:
    """Settings of transformers' ``generate``; the arguments are those of ``generate`` here.

    Raises:
        ValueError: for a model that writes no text.
    """
    refuse_no_text(run.folder, run.form, run.labels)
    settings = protocol_settings(run.recipe, protocol or run.protocol, run.most)
    strings = run.model.generation_config.stop_strings  # the base's own: a text, or several
    if strings:
        strings = [strings] if isinstance(strings, str) else strings
        settings = {"stop_strings": strings} | settings
    settings |= language_settings(run.tokenizer)
    if ends := end_tokens(run):
        settings["eos_token_id"] = ends
    if max_new_tokens is not None:
        settings["max_new_tokens"] = max_new_tokens
    return settings


def room_for_prompts(run: Run, limit: int) -> int | None:
    """How many tokens a prompt may have if ``limit`` are to be written; None for any number.

    Raises:
        ValueError: if the model has no room for so many.
    """
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


def tokens_of(
    run: Run, prompts: list[str], room: int | None, *, templated: bool
) -> list[list[int]]:
    """The token ids of prompts; longer ones than ``room`` are cut, with a warning.

    A decoder's prompts lose their beginning, an encoder–decoder's their end.

    Raises:
        ValueError: for a prompt that is empty, has no known token, or is not valid text.
    """
    tokenizer, decodes = run.tokenizer, run.kind == "decoder"
    # An encoder–decoder can read an empty text if its tokenizer adds special tokens; XSum has some.
    if not all(prompts) and (decodes or not tokenizer("")["input_ids"]):
        which = f"prompt {prompts.index('') + 1} of {len(prompts)}" if prompts[1:] else "the prompt"
        raise ValueError(f"{which} is empty, and there is nothing to continue: leave it out")
    refuse_unstorable("prompt", prompts)
    ended = decodes and not templated and ends_texts(tokenizer)

    def read(**limits: Any) -> list[list[int]]:
        """The prompts without the end that a tokenizer may add, as in training."""
        options = {"add_special_tokens": not templated, "verbose": False, **limits}
        ids: list[list[int]] = tokenizer(prompts, **options)["input_ids"]
        return [without_end(one, tokenizer) for one in ids] if ended else ids

    found = read() if prompts else []
    for prompt, ids in zip(prompts, found, strict=True):
        if not ids:  # a tokenizer may drop unknown characters or white space
            raise ValueError(
                f"the prompt {prompt!r} has no token that this model knows: there is nothing to "
                "continue"
            )
    cut = 0 if room is None else sum(len(ids) > room for ids in found)
    if room is not None and cut:
        side = tokenizer.truncation_side
        tokenizer.truncation_side = "left" if decodes else side
        found = read(truncation=True, max_length=room + ended)
        tokenizer.truncation_side = side
        end = "beginning" if decodes else "end"
        logger.warning("%d of %d prompts lost their %s to fit the model", cut, len(prompts), end)
    return found


def padded(run: Run, prompts: list[list[int]]) -> Any:
    """A batch of prompts; a decoder's are padded at their beginning."""
    side = "left" if run.kind == "decoder" else None
    batch = run.tokenizer.pad({"input_ids": prompts}, padding_side=side, return_tensors="pt")
    return batch.to(run.device)


def continue_batch(run: Run, batch: Any, settings: dict[str, Any]) -> Tensor:
    """The token ids that the model writes for each prompt of a batch, (B, N); greedily by default.

    Raises:
        ValueError: if its generation settings are damaged.
    """
    if "stop_strings" in settings:
        settings = {**settings, "tokenizer": run.tokenizer}
    with _damaged_settings_in_one_line(run), torch.no_grad():
        settings = {"do_sample": False, "pad_token_id": run.tokenizer.pad_token_id, **settings}
        ids = run.model.generate(**batch, **settings)
    # A decoder repeats the prompt in its output; an encoder–decoder does not.
    new: Tensor = ids if run.kind == "encoder_decoder" else ids[:, batch["input_ids"].shape[1] :]
    return new


@contextmanager
def _damaged_settings_in_one_line(run: Run) -> Iterator[None]:
    """Turn what unchecked generation settings fail with into one line.

    Raises:
        ValueError: naming the file of the settings.
    """
    try:
        yield
    except (TypeError, AttributeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise ValueError(
            f"{run.folder} cannot generate ({error}): a setting in its model's "
            "generation_config.json may be damaged"
        ) from error
