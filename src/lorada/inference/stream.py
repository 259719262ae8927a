"""``stream``: one answer of a finished run, shown while it is written, which a user may stop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation import StoppingCriteriaList

from lorada.inference.answer_text import AnswerText
from lorada.inference.generate import (
    continue_batch,
    generation_settings,
    padded,
    room_for_prompts,
    tokens_of,
)
from lorada.inference.load import Run

Show = Callable[[str], object]  # is called with each piece of an answer's text
Stopped = Callable[[], bool]


@dataclass(frozen=True)
class Written:
    """What a model wrote for one prompt.

    Attributes:
        text: the answer, without special tokens.
        ids: its token ids, (N,); an encoder–decoder's begin with the token it starts from.
        read: the batch of one that the model read.
    """

    text: str
    ids: Tensor
    read: dict[str, Tensor]


def stream(
    run: Run, prompt: str, show: Show, stopped: Stopped, max_new_tokens: int | None = None
) -> Written:
    """Continue one prompt greedily, as ``generate`` does, and show the text piece by piece.

    A prompt of a run that learned conversations has special tokens, from the chat template.
    With beam search there is no text before the end, so it is shown as one piece.

    Args:
        run: the run.
        prompt: the text to continue.
        show: is called with each new piece of text; the pieces together are the answer.
        stopped: is asked after each token; once it says True, the answer ends there.
        max_new_tokens: as for ``generate``.

    Raises:
        ValueError: as ``generate`` does.
    """
    settings = generation_settings(run, max_new_tokens)
    room = room_for_prompts(run, settings["max_new_tokens"])
    templated = run.form == "messages"
    batch = padded(run, tokens_of(run, [prompt], room, templated=templated))
    answer = AnswerText(run.tokenizer)
    beams = settings.get("num_beams") or run.model.generation_config.num_beams or 1
    # A decoder repeats the prompt in its output.
    begin = batch["input_ids"].shape[1] if run.kind == "decoder" else 0

    def watch(ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if beams == 1 and (new := answer.take(ids[0, begin:].tolist(), done=False)):
            show(new)
        return torch.full(ids.shape[:1], stopped(), device=ids.device)

    settings["stopping_criteria"] = StoppingCriteriaList([watch])
    ids = continue_batch(run, batch, settings)[0]
    text, shown = answer.whole(ids.tolist()), answer.shown
    # A tokenizer may take back what it had given before.
    show(text[len(shown) :] if text.startswith(shown) else f"\n{text}")
    return Written(text, ids, dict(batch))
