"""``lorada chat``: a conversation with one or several finished runs on one base model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorada.inference.answer_effect import LayerEffect, answer_effect
from lorada.inference.evaluate import scoring
from lorada.inference.generate import chat_prompt, generation_settings, room_for_prompts
from lorada.inference.load import Run, load_side_by_side
from lorada.inference.stream import Show, Stopped, Written, stream
from lorada.support.errors import unknown_name
from lorada.support.row_sources import Row


def never() -> bool:
    """What stops no answer."""
    return False


@dataclass(frozen=True)
class Answer:
    """An answer of one adapter.

    Attributes:
        name: the adapter's name in the chat.
        prompt: the text that the model continued.
        written: what it wrote.
        dropped: how many turns at the beginning of the conversation had no room in the prompt.
    """

    name: str
    prompt: str
    written: Written
    dropped: int


@dataclass
class Chat:
    """A conversation, and who answers.

    Attributes:
        adapters: the runs that can answer, by name; all share one model.
        active: the name of the one that answers.
        max_new_tokens: most tokens of an answer; None for the number of the run's recipe.
        system: what the conversation begins with, as the system's turn; None for nothing.
        turns: the conversation so far, for runs that learned conversations.
        last: the last answer of an adapter.
    """

    adapters: dict[str, Run]
    active: str
    max_new_tokens: int | None = None
    system: str | None = None
    turns: list[Row] = field(default_factory=list)
    last: Answer | None = None

    @property
    def run(self) -> Run:
        """The run that answers."""
        return self.adapters[self.active]

    @property
    def keeps_turns(self) -> bool:
        """Whether the run that answers reads the conversation so far, by a chat template."""
        return self.run.form == "messages"

    def ask(self, question: str, show: Show, stopped: Stopped = never) -> Answer:
        """Let the active adapter answer a question by ``stream``, and remember both.

        Raises:
            ValueError: as ``stream`` does, or if the chat template refuses the conversation.
        """
        prompt, turns = self._prompt(question)
        dropped = len(self.turns) + 1 - len(turns) if self.keeps_turns else 0
        written = self.write(self.active, prompt, show, stopped)
        if self.keeps_turns:
            self.turns = [*turns, {"role": "assistant", "content": written.text}]
        self.last = Answer(self.active, prompt, written, dropped)
        return self.last

    def base_prompt(self, question: str | None) -> tuple[str, str]:
        """Whose base is to answer, and what it reads: without a ``question`` the last prompt.

        Raises:
            ValueError: without an answer to repeat, or for a run without an adapter to switch off.
        """
        if question is None:
            name, prompt = self._last().name, self._last().prompt
        else:
            name, prompt = self.active, self._prompt(question)[0]
        with scoring(self.adapters[name], base=True):
            return name, prompt

    def write(
        self, name: str, prompt: str, show: Show, stopped: Stopped = never, *, base: bool = False
    ) -> Written:
        """Let an adapter, or its ``base`` alone, continue a prompt; nothing is remembered of it.

        Raises:
            ValueError: as ``stream`` does.
        """
        run = self.adapters[name]
        run.activate()
        with scoring(run, base=base):
            return stream(run, prompt, show, stopped, self.max_new_tokens)

    def switch(self, name: str) -> None:
        """Let another adapter answer from now on.

        Raises:
            ValueError: for an unknown name, with the nearest ones.
        """
        if name not in self.adapters:
            raise unknown_name("adapter", name, self.adapters)
        self.active = name

    def effect(self) -> list[LayerEffect]:
        """What the maps of each layer did to the last answer; empty if its adapter has no map.

        Raises:
            ValueError: if there is no answer yet.
        """
        last = self._last()
        self.adapters[last.name].activate()
        return answer_effect(self.adapters[last.name], last.written)

    def reset(self) -> None:
        """Forget the conversation."""
        self.turns, self.last = [], None

    def _last(self) -> Answer:
        if self.last is None:
            raise ValueError("there is no answer yet: ask something first")
        return self.last

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
    """Load finished runs on one base; the first is active.

    Raises:
        ValueError: for a run that is not finished or writes no text, runs on different bases, or a
            run that is given twice.
    """
    adapters = load_side_by_side(folders, trust_remote_code=trust_remote_code)
    for run in adapters.values():
        _room(run, max_new_tokens)
    return Chat(adapters, next(iter(adapters)), max_new_tokens, system)


def _room(run: Run, max_new_tokens: int | None) -> int | None:
    """How many tokens a prompt may have; None for any number."""
    return room_for_prompts(run, generation_settings(run, max_new_tokens)["max_new_tokens"])
