"""Generates text with a finished run: every answer of ours is written by ``write`` here.

Answers come from a batch that is refilled, where that is known to give the tokens of transformers'
``generate``; for other models and settings ``generate`` writes them itself, in padded batches.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers.generation import GenerationMixin, StoppingCriteriaList, StopStringCriteria

from lorada.data.answer_length import generation_of
from lorada.data.shorten import without_middle
from lorada.data.task import Protocol
from lorada.data.tokenize import context_of, ends_texts, learned_ends, prompt_of, without_end
from lorada.inference.continuous_batching import Writer, write_answers
from lorada.inference.continuous_batching_cache import can_be_refilled
from lorada.inference.load import Run
from lorada.runs.recipe import JSONL, refuse_unstorable
from lorada.runs.result import refuse_no_text
from lorada.support.error_messages import SCORING, memory_remedy, out_of_memory
from lorada.support.progress import progress_bar
from lorada.support.row_sources import Row
from lorada.training.models.candidate_scores import accepted
from lorada.training.models.loading import language_settings, refuse_long

logger = logging.getLogger(__name__)

# Settings that a refilled batch follows, and those that change no greedy answer. Others, such as
# beams, penalties and words that are forced or forbidden, are for ``generate``.
FOLLOWED = {"max_new_tokens", "stop_strings", "eos_token_id"}
WITHOUT_EFFECT = {
    "bos_token_id", "pad_token_id", "max_length", "transformers_version", "_from_model_config",
    "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff",
    "eta_cutoff",
}  # fmt: skip
NEUTRAL = {
    "num_beams": 1, "use_cache": True, "output_attentions": False, "output_hidden_states": False,
}  # fmt: skip
Settings = dict[str, Any]  # of transformers' ``generate``
Watch = Callable[[Tensor], None]  # sees the ids of a batch (B, T) after each token


class Text(NamedTuple):
    """A text that a model wrote, and whether it was cut at the limit."""

    text: str
    cut: bool


def chat_prompt(run: Run, turns: list[Row]) -> str:
    """The text that the answer to a conversation's last turn starts from, by the chat template."""
    # The prompt of a row ends before its last turn, so an empty answer stands there.
    messages = [*turns, {"role": "assistant", "content": ""}]
    return prompt_of({"messages": messages}, "messages", run.tokenizer)


def generate(run: Run, prompts: list[str], max_new_tokens: int | None = None) -> list[str]:
    """Continue a user's prompts, as turns of a chat if the run was trained on chats.

    The settings are those of the run's first task. Too long prompts lose their beginning (an
    encoder–decoder's, their end), with a warning. ``max_new_tokens`` are the most of an answer;
    None for the recipe's number.
    """
    is_chat = run.form == "messages"
    if is_chat:
        prompts = [chat_prompt(run, [{"role": "user", "content": prompt}]) for prompt in prompts]
    settings = generation_settings(run, max_new_tokens)
    one_part = [range(len(prompts))]
    texts = dict(generate_parts(run, prompts, one_part, settings, templated=is_chat))
    if max_new_tokens is None:  # who gives a limit expects cut answers
        say_cut(run, [text.cut for text in texts.values()])
    return [texts[index].text for index in range(len(prompts))]


def say_cut(run: Run, cut: list[bool]) -> None:
    """Warn of answers that were cut at the most tokens of one, with their number."""
    if any(cut):
        limit = generation_settings(run)["max_new_tokens"]
        logger.warning("%d of %d answers were cut at %d tokens", sum(cut), len(cut), limit)


def generate_parts(
    run: Run, prompts: list[str], parts: Sequence[range], settings: Settings, *, templated: bool
) -> Iterator[tuple[int, Text]]:
    """Continue some parts of prompts, one part after the other; all are checked at once.

    Yields indices of prompts with their continuations; within a part in any order.
    """
    room = room_for_prompts(run, settings["max_new_tokens"])
    tokens = tokens_of(run, prompts, room, templated=templated)

    def answers() -> Iterator[tuple[int, Text]]:
        for part in parts:
            part_tokens = [tokens[index] for index in part]
            for place, text in write(run, part_tokens, settings):
                yield part[place], text

    return iter(progress_bar(answers(), "Generating", total=sum(map(len, parts))))


def write(
    run: Run, prompts: list[list[int]], settings: Settings, watch: Watch | None = None
) -> Iterator[tuple[int, Text]]:
    """Continue prompts of token ids, and yield the index of each with its answer as it ends.

    How they are batched is chosen here: with the slots of ended answers filled again, or padded. An
    error of torch is turned into one line: what to do about memory, or that a setting is damaged.

    Raises:
        ValueError: if a setting in the model's ``generation_config.json`` makes ``generate`` fail.
    """
    write_ids = _write_padded
    if reason_against(run, settings) is None:
        write_ids = _write_refilled
    try:
        for index, ids in write_ids(run, prompts, settings, watch):
            text = run.tokenizer.decode(ids, skip_special_tokens=True)
            yield index, Text(text, _is_cut(run, ids, text, settings))
    except (TypeError, AttributeError, RuntimeError) as error:
        if out_of_memory(error):
            with memory_remedy(SCORING):
                raise
        raise ValueError(
            f"{run.folder} cannot generate ({error}): a setting in its model's "
            "generation_config.json may be damaged"
        ) from error


def _is_cut(run: Run, ids: list[int], text: str, settings: Settings) -> bool:
    """Whether a text is as long as it may be, with nothing that ends it; pads may be behind it."""
    limit = settings["max_new_tokens"]
    if len(ids) < limit:
        return False
    if any(string in text for string in settings.get("stop_strings") or []):
        return False
    if getattr(run.model.generation_config, "forced_eos_token_id", None):
        ids = ids[: limit - 1]  # an end that is forced upon the last token ends nothing
    return set(ids).isdisjoint(settings.get("eos_token_id", []))


def _write_refilled(
    run: Run, prompts: list[list[int]], settings: Settings, watch: Watch | None
) -> Iterator[tuple[int, list[int]]]:
    """Answer prompts in a batch that is refilled as they end: indices and token ids."""
    model = run.model.get_base_model() if isinstance(run.model, PeftModel) else run.model
    ends = torch.tensor(settings.get("eos_token_id", []), dtype=torch.long, device=run.device)
    stop_strings = settings.get("stop_strings")
    has_stop_string = None
    if stop_strings:
        has_stop_string = StopStringCriteria(run.tokenizer, stop_strings)

    def ended(ids: Tensor) -> Tensor:
        has_ended = torch.isin(ids[:, -1], ends)
        if has_stop_string is not None:
            has_ended = has_ended | has_stop_string(ids, None)
        if watch is not None:
            watch(ids)
        return has_ended

    writer = Writer(
        model=model,
        ended=ended,
        limit=settings["max_new_tokens"],
        pad=run.tokenizer.pad_token_id,
        size=run.recipe.eval_batch_size,
    )
    for index, ids in write_answers(writer, prompts):
        yield index, ids.tolist()


def _write_padded(
    run: Run, prompts: list[list[int]], settings: Settings, watch: Watch | None
) -> Iterator[tuple[int, list[int]]]:
    """Answer prompts in padded batches with transformers' ``generate``: indices and token ids."""
    settings = {"do_sample": False, "pad_token_id": run.tokenizer.pad_token_id, **settings}
    if "stop_strings" in settings:
        settings["tokenizer"] = run.tokenizer
    if watch is not None:
        # After each token ``generate`` asks its criteria whether rows have ended.
        def call_watch(ids: Tensor, *_: Any, **__: Any) -> Tensor:
            watch(ids)
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)  # ends none

        settings["stopping_criteria"] = StoppingCriteriaList([call_watch])
    padding_side = "left" if run.kind == "decoder" else None
    # Prompts of similar length share a batch. The longest come first, to run out of memory early.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    size = run.recipe.eval_batch_size
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        inputs = {"input_ids": [prompts[index] for index in indices]}
        batch = run.tokenizer.pad(inputs, padding_side=padding_side, return_tensors="pt")
        batch = batch.to(run.device)
        with torch.no_grad():
            ids = run.model.generate(**batch, **settings)
        # A decoder repeats the prompt in its output; an encoder–decoder has its start token there.
        begin = batch["input_ids"].shape[1] if run.kind == "decoder" else 1
        yield from zip(indices, ids[:, begin:].tolist(), strict=True)


def reason_against(run: Run, settings: Settings) -> str | None:
    """Why answers with these settings may not come from a refilled batch; None if they may.

    Only what is known to give the same tokens as ``generate`` passes: decoders whose cache is keys
    and values of all tokens, with greedy search.
    """
    if run.kind != "decoder":
        return "it is an encoder–decoder"
    model = run.model
    if isinstance(model, PeftModel):
        config = model.peft_config["default"]
        for part in getattr(config, "parts", [config]):
            # Learned prompts, and adapters that tokens switch on, are steps of PEFT's ``generate``.
            if part.is_prompt_learning or getattr(part, "alora_invocation_tokens", None):
                return f"PEFT generates with its {part.peft_type.value} in a way of its own"
        model = model.get_base_model()
    # Only what takes the likeliest token each time is followed.
    settings = run.model.generation_config.to_diff_dict() | settings
    for name, value in settings.items():
        if value is None or name in FOLLOWED or name in WITHOUT_EFFECT:
            continue
        if name in NEUTRAL and NEUTRAL[name] == value:
            continue
        return f"it generates with {name}={value}"
    prepare = getattr(type(model), "prepare_inputs_for_generation", None)
    if (
        prepare is not GenerationMixin.prepare_inputs_for_generation
        or not accepted(model, position_ids=None)
        or not can_be_refilled(model.config)
    ):
        return f"{type(model).__name__} has inputs or a cache of its own"
    return None


def end_tokens(run: Run) -> list[int]:
    """The tokens that end an answer: the base's own, and those that the run has learned."""
    base_ends = run.model.generation_config.eos_token_id  # a token, several or none
    if base_ends is None:
        base_ends = []
    elif isinstance(base_ends, int):
        base_ends = [base_ends]
    return list(dict.fromkeys([*base_ends, *learned_ends(run.form, run.tokenizer)]))


def generation_settings(
    run: Run, max_new_tokens: int | None = None, protocol: Protocol | None = None
) -> Settings:
    """Gather settings of transformers' ``generate``: the recipe's, the protocol's, the base's.

    The arguments are those of ``generate`` here, and ``max_new_tokens`` wins over all. A run that
    writes no text is refused.
    """
    refuse_no_text(run.folder, run.form, run.labels)
    settings = generation_of(run.recipe, protocol or run.protocol, run.learned_limit)
    strings = run.model.generation_config.stop_strings  # the base's own: a text, or several
    if strings:
        strings = [strings] if isinstance(strings, str) else strings
        settings = {"stop_strings": strings} | settings
    settings |= language_settings(run.tokenizer)
    ends = end_tokens(run)
    if ends:
        settings["eos_token_id"] = ends
    if max_new_tokens is not None:
        settings["max_new_tokens"] = max_new_tokens
    return settings


def with_limit(run: Run, max_new_tokens: int | None) -> Run:
    """The run with another limit for its answers; None leaves it as it is."""
    if max_new_tokens is None:
        return run
    refuse_no_text(run.folder, run.form, run.labels)
    recipe = run.recipe.model_copy(update={"max_new_tokens": max_new_tokens})
    return replace(run, recipe=recipe)


def room_for_prompts(run: Run, limit: int) -> int | None:
    """How many tokens a prompt may have if ``limit`` are to be written; None for any number.

    A ``limit`` that leaves no room is refused. An encoder–decoder reads its prompt apart from what
    it writes, up to the recipe's ``max_length``.
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

    They lose their middle, as in training; those of benchmarks, as was published, their beginning,
    and an encoder–decoder's their end.

    A prompt that is empty, or has no token, is refused.
    """
    if not prompts:
        return []
    _refuse_empty(run, prompts)
    refuse_unstorable("prompt", prompts)
    ids_of_prompts = _encoded(run, prompts, templated=templated)
    for prompt, ids in zip(prompts, ids_of_prompts, strict=True):
        if not ids:  # a tokenizer may drop unknown characters or white space
            raise ValueError(
                f"the prompt {prompt!r} has no token that this model knows: there is nothing to "
                "continue"
            )
    if room is None:
        return ids_of_prompts
    too_long = sum(len(ids) > room for ids in ids_of_prompts)
    if not too_long:
        return ids_of_prompts
    if run.recipe.task == JSONL:
        logger.warning(
            "%d of %d prompts lost their middle to fit the model", too_long, len(prompts)
        )
        return [without_middle(ids, room) for ids in ids_of_prompts]
    lost_end = "beginning" if run.kind == "decoder" else "end"
    shortened = _encoded(run, prompts, templated=templated, room=room)
    logger.warning(
        "%d of %d prompts lost their %s to fit the model", too_long, len(prompts), lost_end
    )
    return shortened


def _refuse_empty(run: Run, prompts: list[str]) -> None:
    """Refuse empty prompts, unless the model can read them.

    An encoder–decoder can if its tokenizer adds special tokens; XSum has empty texts.
    """
    if all(prompts):
        return
    if run.kind != "decoder" and run.tokenizer("")["input_ids"]:
        return
    which = "the prompt"
    if len(prompts) > 1:
        which = f"prompt {prompts.index('') + 1} of {len(prompts)}"
    raise ValueError(f"{which} is empty, and there is nothing to continue: leave it out")


def _encoded(
    run: Run, prompts: list[str], *, templated: bool, room: int | None = None
) -> list[list[int]]:
    """The token ids of prompts, without the end that a tokenizer may add, as in training.

    With ``room``, longer ones are cut at the beginning, an encoder–decoder's at the end that its
    tokenizer says.
    """
    tokenizer = run.tokenizer
    decodes = run.kind == "decoder"
    adds_end = decodes and not templated and ends_texts(tokenizer)
    options: dict[str, Any] = {"add_special_tokens": not templated, "verbose": False}
    usual_side = tokenizer.truncation_side
    if room is not None:
        # Of the tokens that the tokenizer counts, the end is taken away again.
        options |= {"truncation": True, "max_length": room + adds_end}
        tokenizer.truncation_side = "left" if decodes else usual_side
    ids_of_prompts: list[list[int]] = tokenizer(prompts, **options)["input_ids"]
    tokenizer.truncation_side = usual_side
    if not adds_end:
        return ids_of_prompts
    return [without_end(ids, tokenizer) for ids in ids_of_prompts]
