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
    text_so_far = ""  # what was shown

    def watch(ids: Tensor) -> None:
        """Show what the last token has added, once its characters are whole."""
        nonlocal text_so_far
        if beams > 1:  # whose best beam may become another one
            return
        text = run.tokenizer.decode(ids[0, begin:], skip_special_tokens=True)
        # The last character may be cut yet: bytes that follow may change those before.
        last_token = run.tokenizer.convert_ids_to_tokens(int(ids[0, -1]))
        if last_token.startswith("<0x") or text.endswith("\ufffd"):
            return
        if not text.startswith(text_so_far):  # some tokenizers take back what they gave before
            return
        piece = text[len(text_so_far) :]
        text_so_far = text
        show(piece)

    try:
        ((_, answer),) = write(run, tokens, settings, watch)
        if answer.text.startswith(text_so_far):
            show(answer.text[len(text_so_far) :])
        else:
            show(f"\n{answer.text}")  # all of it again
    except KeyboardInterrupt:
        return text_so_far
    return answer.text


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
        turns = self._fitting([*self.turns, {"role": "user", "content": question}])
        self.last = self._prompt(turns)
        text = self.write(self.last, show)
        self.turns = [*turns, {"role": "assistant", "content": text}]
        return text

    def _prompt(self, turns: list[Row]) -> str:
        """What the model reads of turns, behind the system's turn if there is one."""
        if self.system is None:
            return chat_prompt(self.run, turns)
        return chat_prompt(self.run, [{"role": "system", "content": self.system}, *turns])

    def _fitting(self, turns: list[Row]) -> list[Row]:
        """Leave out the first questions and answers of a chat until the rest fits the context.

        The last question stays. A warning says how many were left out.
        """
        settings = generation_settings(self.run, self.max_new_tokens)
        room = room_for_prompts(self.run, settings["max_new_tokens"])
        left_out = 0
        # The last question stays, however long it is; ``stream`` shortens it.
        while room is not None and len(turns) > 2:
            (ids,) = tokens_of(self.run, [self._prompt(turns)], None, templated=True)
            if len(ids) <= room:
                break
            turns = turns[2:]
            left_out += 1
        if left_out:
            questions = "question" if left_out == 1 else f"{left_out} questions"
            logger.warning("left out the first %s to fit the model's context", questions)
        return turns

    def base_prompt(self) -> str:
        """What the base alone is to continue: the last prompt.

        Raises:
            ValueError: before the first answer.
        """
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
