"""``stream``: one answer of a finished run, shown while it is written, which a user may stop."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from lorada.inference.answer_text import AnswerText
from lorada.inference.generate import (
    check_prompts,
    continue_batch,
    generation_settings,
    padded,
    prompts_end_alike,
    room_for_prompts,
    tokens_of,
)
from lorada.inference.load import Run

logger = logging.getLogger(__name__)

Show = Callable[[str], object]  # is called with each piece of an answer's text


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
    run: Run,
    prompt: str,
    *,
    show: Show,
    stopped: Callable[[], bool] = lambda: False,
    templated: bool = False,
    max_new_tokens: int | None = None,
) -> Written:
    """Continue one prompt greedily, as ``generate`` does, and show the text piece by piece.

    With beam search there is no text before the end, so it is shown as one piece.

    Args:
        run: the run.
        prompt: the text to continue.
        show: is called with each new piece of text; the pieces together are the answer.
        stopped: is asked after each token; once it says True, the answer ends there.
        templated: as for ``generate``.
        max_new_tokens: as for ``generate``.

    Raises:
        ValueError: as ``generate`` does.
    """
    settings = generation_settings(run, max_new_tokens)
    check_prompts(run, [prompt], templated=templated)
    room = room_for_prompts(run, settings["max_new_tokens"])
    with prompts_end_alike(run):
        tokens, cut = tokens_of(run, [prompt], room, templated=templated)
        batch = padded(run, tokens)
    if cut:
        end = "beginning" if run.kind == "decoder" else "end"
        logger.warning("the question lost its %s to fit the model", end)
    answer = AnswerText(run.tokenizer)
    pieces = _Pieces(show)
    settings["stopping_criteria"] = StoppingCriteriaList([Stop(stopped)])
    if (settings.get("num_beams") or run.model.generation_config.num_beams or 1) == 1:
        settings["streamer"] = TokenStreamer(lambda ids: pieces.add(answer.settled(ids)))
    ids = continue_batch(run, batch, settings)[0]
    text = answer.whole(ids.tolist())
    pieces.finish(text)
    return Written(text, ids, dict(batch))


class _Pieces:
    """Shows the new part of an answer's text as it becomes longer."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._shown = ""

    def add(self, text: str) -> None:
        """Show what is new in the text so far."""
        new = text.removeprefix(self._shown)
        if new and text.startswith(self._shown):
            self._shown = text
            self._show(new)

    def finish(self, text: str) -> None:
        """Show what is still missing of the whole text."""
        self.add(text)
        if text != self._shown:  # the tokenizer took back what it had given before
            self._show(f"\n{text}")


class TokenStreamer(BaseStreamer):  # type: ignore[misc]
    """Calls ``tell`` with all tokens of an answer so far, after each new one.

    All ids are decoded each time, unlike in transformers' ``TextStreamer``, which starts anew after
    each line and then loses the blank before a SentencePiece tokenizer's next word.
    """

    def __init__(self, tell: Callable[[list[int]], object]) -> None:
        self._tell = tell
        self._ids: list[int] | None = None

    def put(self, value: Tensor) -> None:
        """Take a token; the first call brings the prompt, or what a decoder starts from."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        self._tell([*self._ids])

    def end(self) -> None:
        """Nothing: who asked for the answer knows its end."""


class Stop(StoppingCriteria):  # type: ignore[misc]
    """Ends an answer once ``stopped`` says so."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """The same answer for every row (B,)."""
        return torch.full(input_ids.shape[:1], self._stopped(), device=input_ids.device)
