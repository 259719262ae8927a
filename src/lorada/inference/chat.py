"""``lorada chat``: a conversation with one or several finished runs on one base model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lorada.attention.observation import Observation, observe, ratio_of
from lorada.inference.answer_text import AnswerText
from lorada.inference.generate import (
    chat_prompt,
    generation_settings,
    padded,
    room_for_prompts,
    tokens_of,
    write,
)
from lorada.inference.load import Run, load_side_by_side, scoring
from lorada.methods.task_head import PEFT_NAMES
from lorada.support.errors import unknown_name
from lorada.support.row_sources import Row

Show = Callable[[str], object]  # is called with each piece of an answer's text
Stopped = Callable[[], bool]
Norms = tuple[Tensor, Tensor]  # squared, of a map's term and of the output without it


@dataclass(frozen=True)
class Written:
    """What a model wrote for one prompt."""

    text: str  # without special tokens
    ids: Tensor  # (N,); an encoder–decoder's begin with the token it starts from
    read: dict[str, Tensor]  # the batch of one that the model read


def never() -> bool:
    """What stops no answer."""
    return False


def stream(
    run: Run, prompt: str, show: Show, stopped: Stopped = never, max_new_tokens: int | None = None
) -> Written:
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
    ids = torch.tensor(found.ids, dtype=torch.long, device=run.device)
    return Written(whole, ids, dict(padded(run, tokens)))


class LayerEffect(NamedTuple):
    """What the map of the attention module ``layer`` did.

    ``text`` is its relative norm over all tokens that the layer read, of question and answer;
    ``answer`` over the tokens alone that the answer's tokens were predicted from. An encoder reads
    no answer, and an encoder–decoder's decoder nothing else, so there both are the same.
    """

    layer: str
    text: float
    answer: float


def answer_effect(run: Run, written: Written) -> list[LayerEffect]:
    """Let a run read an answer with its question once more, and measure its maps.

        relative norm = ‖tile(Attn_s) V‖ / ‖Attn V‖ over the tokens (Frobenius)

    It is measured without the maps themselves, which long texts would make large. A map with
    ``align="end"`` moves while the model writes; here it stands at the end of the text.

    Returns:
        The layers with an active map, in order; none if the run has no map.
    """
    ids, answer = written.ids[None], slice(None)
    if run.kind == "encoder_decoder":  # the last token was written, but never read
        batch = {**written.read, "decoder_input_ids": ids[:, :-1]}
    else:
        question = written.read["input_ids"]
        whole = torch.cat([question, ids], dim=1)
        batch = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        answer = slice(question.shape[1] - 1, whole.shape[1] - 1)
    found: dict[nn.Module, list[list[Norms]]] = {}

    def keep(seen: Observation) -> None:
        both = seen.term, seen.output.to(seen.term.dtype)  # of one text, so every token is real
        term, output = ([x[:, part].square().sum() for part in (slice(None), answer)] for x in both)
        found.setdefault(seen.call.module, []).append(list(zip(term, output, strict=True)))

    with torch.no_grad(), observe(keep):
        run.model(**batch)
    effects = []
    for name, module in run.model.named_modules():
        if module in found:
            text, own = (ratio_of(list(calls)) for calls in zip(*found[module], strict=True))
            effects.append(LayerEffect(name.removeprefix(PEFT_NAMES), text, own))
    return effects


@dataclass(frozen=True)
class Answer:
    """An answer of one adapter."""

    name: str  # of the adapter, in the chat
    prompt: str  # the text that the model continued
    written: Written
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
        written = self.write(self.active, prompt, show, stopped)
        if self.keeps_turns:
            self.turns = [*turns, {"role": "assistant", "content": written.text}]
        self.last = Answer(self.active, prompt, written, dropped)
        return self.last

    def base_prompt(self, question: str | None) -> tuple[str, str]:
        """Whose base is to answer, and what it reads: without a ``question`` the last prompt."""
        if question is None:
            name, prompt = self._last().name, self._last().prompt
        else:
            name, prompt = self.active, self._prompt(question)[0]
        with scoring(self.adapters[name], base=True):
            return name, prompt

    def write(
        self, name: str, prompt: str, show: Show, stopped: Stopped = never, *, base: bool = False
    ) -> Written:
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

    def effect(self) -> list[LayerEffect]:
        """What the maps of each layer did to the last answer; empty if its adapter has no map."""
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
    """Load finished runs on one base; the first is active."""
    adapters = load_side_by_side(folders, trust_remote_code=trust_remote_code)
    for run in adapters.values():
        _room(run, max_new_tokens)
    return Chat(adapters, next(iter(adapters)), max_new_tokens, system)


def _room(run: Run, max_new_tokens: int | None) -> int | None:
    """How many tokens a prompt may have; None for any number."""
    return room_for_prompts(run, generation_settings(run, max_new_tokens)["max_new_tokens"])
