"""Writes the ``Modelfile`` with which Ollama asks an exported model as it was trained.

Ollama has a template language of its own. It knows a conversation as a system text and turns with
roles, each between two fixed texts. Whether the chat template of a tokenizer is of this kind is
seen from what it makes of made-up turns.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorada.inference.generate import end_tokens
from lorada.inference.load import Run
from lorada.support.files import write_atomic

logger = logging.getLogger(__name__)

GGUF = "model.gguf"  # beside the Modelfile, where the guide tells a converter to write it
MODELFILE = '''\
FROM ./{gguf}
TEMPLATE """{template}"""
PARAMETER temperature 0
PARAMETER repeat_penalty 1
{stops}'''
# Texts that stand in no template, for the turns of a made-up conversation.
SYSTEM, QUESTION, ANSWER, SECOND = "SYSTEM7", "QUESTION7", "ANSWER7", "SECOND7"
Turns = list[tuple[str, str]]  # of role and text


@dataclass(frozen=True)
class ChatFormat:
    """What stands before and behind each text of a conversation."""

    without_system: str  # what a conversation begins with if it has no system text
    system: tuple[str, str] | None  # None if the template does not take one
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str  # what an answer begins behind

    def rendered(self, turns: Turns) -> str:
        """A conversation as the model reads it, up to its answer."""
        text = "" if turns[0][0] == "system" else self.without_system
        for role, content in turns:
            before, behind = getattr(self, role)
            text += before + content + behind
        return text + self.answer

    def as_template(self) -> str:
        """The same in the template language of Ollama, which is Go's."""
        begin = self.without_system
        if self.system is not None:
            begin = f"{{{{ if .System }}}}{'{{ .System }}'.join(self.system)}{{{{ else }}}}"
            begin += f"{self.without_system}{{{{ end }}}}"
        user, assistant = ("{{ .Content }}".join(pair) for pair in (self.user, self.assistant))
        turns = (
            f'{{{{ if eq .Role "user" }}}}{user}{{{{ else if eq .Role "assistant" }}}}{assistant}'
        )
        return f"{begin}{{{{ range .Messages }}}}{turns}{{{{ end }}}}{{{{ end }}}}{self.answer}"


def write_modelfile(run: Run, folder: Path) -> None:
    """Write the Modelfile of a decoder into which all is merged, for Ollama.

    None is written, with a warning, if Ollama's templates cannot say what the chat template does.
    """
    template = "{{ .Prompt }}"
    if run.form == "messages":
        chat = chat_format(run.tokenizer)
        if chat is None:
            logger.warning("no Modelfile for Ollama: its template language cannot say what the "
                           "chat template of this model does")  # fmt: skip
            return
        template = chat.as_template()
    stop_lines = ""
    for token_id in end_tokens(run):
        stop = run.tokenizer.convert_ids_to_tokens(token_id)
        if stop and '"' not in stop:  # which ends a text in a Modelfile
            stop_lines += f'PARAMETER stop "{stop}"\n'
    text = MODELFILE.format(gguf=GGUF, template=template, stops=stop_lines)
    write_atomic(folder / "Modelfile", text)


def chat_format(tokenizer: Any) -> ChatFormat | None:
    """The chat template of a tokenizer as texts around turns; None if it is more than that."""
    try:
        chat = _probed(tokenizer)
        conversations: list[Turns] = [
            [("user", QUESTION)],
            [("user", QUESTION), ("assistant", ANSWER), ("user", SECOND)],
            # A template may strip white space, or count the turns.
            [
                ("user", "a"),
                ("assistant", "b\nc"),
                ("user", "d"),
                ("assistant", "e"),
                ("user", "f"),
            ],
        ]
        if chat.system is not None:
            conversations += [[("system", SYSTEM), *turns] for turns in list(conversations)]
        if any(chat.rendered(turns) != _render(tokenizer, turns) for turns in conversations):
            return None
    except Exception:  # of any kind: a template raises what it likes
        return None
    chat = _without_double_begin(chat, tokenizer)
    texts = [chat.without_system, *(chat.system or ()), *chat.user, *chat.assistant, chat.answer]
    # Neither can stand in a Modelfile as a text.
    if any("{{" in text or '"""' in text for text in texts):
        return None
    return chat


def _probed(tokenizer: Any) -> ChatFormat:
    """The texts around turns, from what the template makes of a few conversations."""
    question, answer = ("user", QUESTION), ("assistant", ANSWER)
    # Each conversation has one turn more, so that what it adds is that turn.
    one_turn = _render(tokenizer, [question], ends=True)
    two_turns = _render(tokenizer, [question, answer], ends=True)
    three_turns = _render(tokenizer, [question, answer, ("user", SECOND)], ends=True)
    user = _around(three_turns.removeprefix(two_turns), SECOND)
    question_text = QUESTION.join(user)
    return ChatFormat(
        without_system=one_turn.removesuffix(question_text),
        system=_system_of(tokenizer, question_text),
        user=user,
        assistant=_around(two_turns.removeprefix(one_turn), ANSWER),
        answer=_render(tokenizer, [question]).removeprefix(one_turn),
    )


def _system_of(tokenizer: Any, question_text: str) -> tuple[str, str] | None:
    """What stands around a system text; None if the template refuses it or leaves it out."""
    try:
        text = _render(tokenizer, [("system", SYSTEM), ("user", QUESTION)], ends=True)
    except Exception:  # as above
        return None
    head = text.removesuffix(question_text)
    return _around(head, SYSTEM) if SYSTEM in head else None


def _around(text: str, content: str) -> tuple[str, str]:
    """The parts of a rendered template before and behind the ``content`` of a turn.

    Raises:
        ValueError: if the template leaves the content out.
    """
    before, _, behind = text.partition(content)
    if content not in text:
        raise ValueError(f"the template leaves {content} out")
    return before, behind


def _without_double_begin(chat: ChatFormat, tokenizer: Any) -> ChatFormat:
    """The texts without the token that begins a text, where Ollama writes it by itself."""
    begin = tokenizer.bos_token
    if not begin or tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
        return chat
    system = chat.system
    if system is not None:
        system = (system[0].removeprefix(begin), system[1])
    return replace(chat, without_system=chat.without_system.removeprefix(begin), system=system)


def _render(tokenizer: Any, turns: Turns, *, ends: bool = False) -> str:
    """A conversation by the chat template, up to where an answer begins unless it ``ends``."""
    messages = [{"role": role, "content": text} for role, text in turns]
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=not ends
    )
    return text
