"""``lorada chat``: a conversation with one or several finished runs on one base model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lorada.inference.answer_text import AnswerText
from lorada.inference.generate import (
    chat_prompt,
    generation_settings,
    room_for_prompts,
    tokens_of,
    write,
)
from lorada.inference.load import Run, load_side_by_side, scoring
from lorada.support.errors import unknown_name
from lorada.support.row_sources import Row

Show = Callable[[str], object]  # is called with each piece of an answer's text
Stopped = Callable[[], bool]


def never() -> bool:
    """What stops no answer."""
    return False


def stream(
    run: Run, prompt: str, show: Show, stopped: Stopped = never, max_new_tokens: int | None = None
) -> str:
    """Continue one prompt greedily, as ``generate`` does, and show the text piece by piece.

    A prompt of a run that learned conversations has special tokens, from the chat template. The
    pieces together are the answer; with beam search there is one. The answer ends at the token
    after which ``stopped`` says True.
    """
    settings = generation_settings(run, max_new_tokens)
    room = room_for_prompts(run, settings["max_new_tokens"])
    tokens = tokens_of(run, [prompt], room, templated=run.form == "messages")
    answer = AnswerText(run.tokenizer)
    beams = settings.get("num_beams") or run.model.generation_config.num_beams or 1
    begin = len(tokens[0]) if run.kind == "decoder" else 0  # its output repeats the prompt

    def watch(ids: Tensor) -> Tensor:
        if beams == 1 and (new := answer.take(ids[0, begin:].tolist(), done=False)):
            show(new)
        return torch.full(ids.shape[:1], stopped(), device=ids.device)

    ((_, found),) = write(run, tokens, settings, watch)
    # A tokenizer may take back what it had given before.
    whole, shown = found.text, answer.shown
    show(whole[len(shown) :] if whole.startswith(shown) else f"\n{whole}")
    return whole


@dataclass(frozen=True)
class Answer:
    """An answer of one adapter."""

    name: str  # of the adapter, in the chat
    prompt: str  # the text that the model continued
    text: str  # without special tokens
    dropped: int  # turns at the beginning of the conversation that had no room in the prompt


@dataclass
class Chat:
    """A conversation, and who answers."""

    adapters: dict[str, Run]  # the runs that can answer, by name; all share one model
    active: str  # the name of the one that answers
    max_new_tokens: int | None = None  # None for the number of the run's recipe
    system: str | None = None  # what the conversation begins with, as the system's turn
    turns: list[Row] = field(default_factory=list)  # so far, for runs that learned conversations
    last: Answer | None = None  # of an adapter

    @property
    def run(self) -> Run:
        """The run that answers."""
        return self.adapters[self.active]

    @property
    def keeps_turns(self) -> bool:
        """Whether the run that answers reads the conversation so far, by a chat template."""
        return self.run.form == "messages"

    def ask(self, question: str, show: Show, stopped: Stopped = never) -> Answer:
        """Let the active adapter answer a question by ``stream``, and remember both."""
        prompt, turns = self._prompt(question)
        dropped = len(self.turns) + 1 - len(turns) if self.keeps_turns else 0
        text = self.write(self.active, prompt, show, stopped)
        if self.keeps_turns:
            self.turns = [*turns, {"role": "assistant", "content": text}]
        self.last = Answer(self.active, prompt, text, dropped)
        return self.last

    def base_prompt(self, question: str | None) -> tuple[str, str]:
        """Whose base is to answer, and what it reads: without a ``question`` the last prompt."""
        if question is not None:
            name, prompt = self.active, self._prompt(question)[0]
        elif self.last is not None:
            name, prompt = self.last.name, self.last.prompt
        else:
            raise ValueError("there is no answer yet: ask something first")
        with scoring(self.adapters[name], base=True):
            return name, prompt

    def write(
        self, name: str, prompt: str, show: Show, stopped: Stopped = never, *, base: bool = False
    ) -> str:
        """Let an adapter, or its ``base`` alone, continue a prompt; nothing is remembered of it."""
        run = self.adapters[name]
        run.activate()
        with scoring(run, base=base):
            return stream(run, prompt, show, stopped, self.max_new_tokens)

    def switch(self, name: str) -> None:
        """Let another adapter answer from now on."""
        if name not in self.adapters:
            raise unknown_name("adapter", name, self.adapters)
        self.active = name

    def reset(self) -> None:
        """Forget the conversation."""
        self.turns, self.last = [], None

    def _prompt(self, question: str) -> tuple[str, list[Row]]:
        """The prompt for a question, and the turns in it; the oldest are left out to make room."""
        if not self.keeps_turns:
            return question, []
        run, room = self.run, _room(self.run, self.max_new_tokens)
        turns = [*self.turns, {"role": "user", "content": question}]
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        while True:
            prompt = chat_prompt(run, [*first, *turns])
            ids = run.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
            if room is None or len(ids) <= room or len(turns) == 1:
                return prompt, turns
            del turns[:2]


def open_chat(
    folders: Sequence[Path],
    max_new_tokens: int | None = None,
    system: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> Chat:
    """Load finished runs on one base; the first is active."""
    adapters = load_side_by_side(folders, trust_remote_code=trust_remote_code)
    for run in adapters.values():
        _room(run, max_new_tokens)
    return Chat(adapters, next(iter(adapters)), max_new_tokens, system)


def _room(run: Run, max_new_tokens: int | None) -> int | None:
    """How many tokens a prompt may have; None for any number."""
    return room_for_prompts(run, generation_settings(run, max_new_tokens)["max_new_tokens"])
