"""``lorada chat``: a conversation with a finished run."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from lorada.inference.generate import (
    chat_prompt,
    generation_settings,
    room_for_prompts,
    tokens_of,
    write,
)
from lorada.inference.load import Run, load_run, scoring
from lorada.support.row_sources import Row

logger = logging.getLogger(__name__)

Show = Callable[[str], object]  # is called with each piece of an answer's text


def stream(run: Run, prompt: str, show: Show, max_new_tokens: int | None = None) -> str:
    """Continue one prompt greedily, as ``generate`` does, and show the text piece by piece.

    The pieces together are the answer; with beam search there is one. Ctrl-C ends it.
    """
    settings = generation_settings(run, max_new_tokens)
    room = room_for_prompts(run, settings["max_new_tokens"])
    tokens = tokens_of(run, [prompt], room, templated=run.form == "messages")
    beams = settings.get("num_beams") or run.model.generation_config.num_beams or 1
    begin = len(tokens[0]) if run.kind == "decoder" else 1  # behind the prompt, or a start token
    shown = ""

    def watch(ids: Tensor) -> None:
        nonlocal shown
        text = run.tokenizer.decode(ids[0, begin:], skip_special_tokens=True)
        # The last character may be cut yet: bytes that follow may change those before. And some
        # tokenizers take back what they gave before.
        cut = run.tokenizer.convert_ids_to_tokens(int(ids[0, -1])).startswith("<0x")
        cut = cut or text.endswith("\ufffd")
        if beams == 1 and text.startswith(shown) and not cut:
            new, shown = text[len(shown) :], text
            show(new)

    try:
        ((_, (whole, _)),) = write(run, tokens, settings, watch)
        # What is left of it, or all of it again.
        show(whole[len(shown) :] if whole.startswith(shown) else f"\n{whole}")
    except KeyboardInterrupt:
        return shown
    return whole


@dataclass
class Chat:
    """A conversation with a run."""

    run: Run
    max_new_tokens: int | None = None  # None for the number of the run's recipe
    system: str | None = None  # what the conversation begins with, as the system's turn
    turns: list[Row] = field(default_factory=list)  # so far, if the run learned conversations
    last: str | None = None  # the text that the run continued last

    def ask(self, question: str, show: Show) -> str:
        """Let the run answer a question by ``stream``, and remember both.

        A conversation that has outgrown the model's context loses its first questions and their
        answers, with a warning; the system's turn stays.
        """
        if self.run.form != "messages":
            self.last = question
            return self.write(question, show)
        turns = [*self.turns, {"role": "user", "content": question}]
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        settings = generation_settings(self.run, self.max_new_tokens)
        room = room_for_prompts(self.run, settings["max_new_tokens"])
        prompt, left_out = chat_prompt(self.run, [*first, *turns]), 0
        while room is not None and turns[2:]:
            if len(tokens_of(self.run, [prompt], None, templated=True)[0]) <= room:
                break
            turns, left_out = turns[2:], left_out + 1
            prompt = chat_prompt(self.run, [*first, *turns])
        if left_out:
            first_ones = "question" if left_out == 1 else f"{left_out} questions"
            logger.warning("left out the first %s to fit the model's context", first_ones)
        self.last = prompt
        text = self.write(self.last, show)
        self.turns = [*turns, {"role": "assistant", "content": text}]
        return text

    def base_prompt(self) -> str:
        """What the base alone is to continue: the last prompt."""
        if self.last is None:
            raise ValueError("there is no answer yet: ask something first")
        with scoring(self.run, base=True):
            return self.last

    def write(self, prompt: str, show: Show, *, base: bool = False) -> str:
        """Let the run, or its ``base`` alone, continue a prompt; nothing is remembered of it."""
        with scoring(self.run, base=base):
            return stream(self.run, prompt, show, self.max_new_tokens)

    def reset(self) -> None:
        """Forget the conversation."""
        self.turns, self.last = [], None


def open_chat(
    folder: Path,
    max_new_tokens: int | None = None,
    system: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> Chat:
    """Load a finished run to chat with; an answer must leave room for a prompt."""
    run = load_run(folder, trust_remote_code=trust_remote_code)
    room_for_prompts(run, generation_settings(run, max_new_tokens)["max_new_tokens"])
    return Chat(run, max_new_tokens, system)
