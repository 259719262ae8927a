"""The command ``chat``: a conversation in the terminal with finished runs on one base.

Answers go to the output, everything else to the error stream, so that a script gets answers alone.
"""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from lorada.cli.app import Remote, app, errors, loading_model, note, say
from lorada.cli.run_commands import suggest_scoring
from lorada.support.errors import unknown_name

BASE = "base"
KEYS = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the chat"
QUIT = "/quit"
HELP = """\
/base          answer the last question with the base alone, below the adapter's answer
/base TEXT     answer TEXT with the base alone; it is not part of the conversation
/adapter NAME  let another adapter answer; without NAME, list them
/reset         forget the conversation
/help          show this list
/quit          end the chat
A line that ends with \\ goes on in the next. Put a blank before a question that begins with /."""


@app.command()
def chat(
    runs: Annotated[
        list[Path], typer.Argument(help="folders of finished runs on one base; the first answers")
    ],
    system: Annotated[
        str | None, typer.Option(help="what the conversation begins with, as the system's turn")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="tokens to generate")] = None,
    remote: Remote = False,
) -> None:
    """Chat with finished runs in the terminal, with the base's answers beside theirs."""
    from lorada.runs.folder import writers

    recipe = writers(runs)
    if system is not None:
        refuse_system(runs)
    with loading_model(recipe.model):
        from lorada.inference.chat import open_chat

        opened = open_chat(runs, max_new_tokens, system, trust_remote_code=remote)
    _list_adapters(opened)
    note(KEYS)
    with suppress(ImportError):
        import readline  # noqa: F401 (gives input() a history and the arrow keys)
    while (line := _read(opened.active)) is not None and line.strip() != QUIT:
        try:
            _obey(opened, line)
        except ValueError as error:
            note(f"error: {' '.join(str(error).split())}")
    suggest_scoring(runs[0], recipe, on=errors)


def refuse_system(runs: Sequence[Path]) -> None:
    """Refuse a system's turn for runs that read no conversation, naming the first."""
    from lorada.runs.result import read_result

    for run in runs:
        if read_result(run)["form"] != "messages":
            raise ValueError(
                f"--system is for runs that learned conversations, and {run} continues each line "
                "by itself: write it at the beginning of the line"
            )


def _read(name: str) -> str | None:
    """The next question or command, as it was typed or from a file or pipe; None at the end."""
    lines: list[str] = []
    while True:
        try:
            prompt = "… " if lines else f"{name}> "
            line = input(prompt) if sys.stdin.isatty() else next(sys.stdin).rstrip("\r\n")
        except (EOFError, StopIteration):
            return "\n".join(lines) if lines else None
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            note(f"\nCtrl-D or {QUIT} ends the chat")
            return ""
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _obey(chat: Any, line: str) -> None:
    """Answer a question, or do what a command says."""
    word, _, rest = line.partition(" ")
    if word in COMMANDS:
        COMMANDS[word](chat, rest.strip())
    elif line.startswith("/"):
        raise unknown_name("command", word, [*COMMANDS, QUIT])
    elif line.strip():
        _answer(chat, line)


def _answer(chat: Any, question: str) -> None:
    with _stoppable() as stopped:
        answer = chat.ask(question, _show, stopped)
    _show("\n")
    if answer.dropped:
        note(f"the first {answer.dropped} turns have no room any more and were left out")


def _base(chat: Any, text: str) -> None:
    name, prompt = chat.base_prompt(text or None)
    if not text:
        _label(name)
        _show(f"{chat.last.text}\n")
    _label(BASE)
    with _stoppable() as stopped:
        chat.write(name, prompt, _show, stopped, base=True)
    _show("\n")


def _adapter(chat: Any, name: str) -> None:
    if name:
        chat.switch(name)
        note(_about(chat, name))
    else:
        _list_adapters(chat)


def _reset(chat: Any, _: str) -> None:
    chat.reset()
    note("the conversation is forgotten")


COMMANDS: dict[str, Callable[[Any, str], None]] = {
    "/base": _base,
    "/adapter": _adapter,
    "/reset": _reset,
    "/help": lambda *_: note(HELP),
}


def _list_adapters(chat: Any) -> None:
    for name in chat.adapters:
        answers = len(chat.adapters) > 1 and name == chat.active
        note(_about(chat, name) + (" (it answers now)" if answers else ""))


def _about(chat: Any, name: str) -> str:
    """One line on a run: what it is, and what becomes of a question."""
    run = chat.adapters[name]
    how = "it continues each line by itself, as a prompt"
    if run.form == "messages":
        how = "it reads the conversation so far, in the tokenizer's chat template"
    return f"{name}: {run.recipe.method} on {run.recipe.model}; {how}"


def _label(name: str) -> None:
    say(Text(f"{name}:", "bold"))


def _show(piece: str) -> None:
    print(piece, end="", flush=True)  # as it is: rich would make blanks of tabs


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C was pressed; a second Ctrl-C ends the command."""
    pressed: list[bool] = []

    def press(*_: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
