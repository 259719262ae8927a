"""The command ``chat``: a conversation in the terminal with finished runs on one base.

Answers go to the output, everything else to the error stream, so that a script gets answers alone.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from lorada.cli import options as opt
from lorada.cli.app import app, errors, loading_model, note, say
from lorada.cli.run_commands import suggest_scoring
from lorada.support.errors import unknown_name

KEYS = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the chat"
# The commands; the words in capitals, which may be left out, are no part of the names.
COMMANDS = {
    "/base TEXT": "answer TEXT, else the last question, with the base alone; it is not remembered",
    "/adapter NAME": "let another adapter answer; without NAME, list them",
    "/reset": "forget the conversation",
    "/help": "show this list",
    "/quit": "end the chat",
}
HELP = "\n".join([f"{name:14} {what}" for name, what in COMMANDS.items()])


@app.command(rich_help_panel=opt.TRAIN)
def chat(
    runs: Annotated[
        list[Path], typer.Argument(help="folders of finished runs on one base; the first answers")
    ],
    system: Annotated[
        str | None, typer.Option(help="what the conversation begins with, as the system's turn")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="tokens to generate")] = None,
    remote: opt.Remote = False,
) -> None:
    """Chat with finished runs in the terminal, with the base's answers beside theirs."""
    from lorada.runs.folder import writers
    from lorada.runs.result import read_result

    recipe = writers(runs)
    for run in runs if system is not None else ():
        if read_result(run)["form"] != "messages":
            raise ValueError(
                f"--system is for runs that learned conversations, and {run} continues each line "
                "by itself: write it at the beginning of the line"
            )
    with loading_model(recipe.model):
        from lorada.inference.chat import open_chat

        opened = open_chat(runs, max_new_tokens, system, trust_remote_code=remote)
    _list_adapters(opened)
    note(KEYS)
    with suppress(ImportError):
        import readline  # noqa: F401 (gives input() a history and the arrow keys)
    while (line := _read(opened.active)) is not None and line.strip() != "/quit":
        try:
            _obey(opened, line)
        except ValueError as error:
            note(f"error: {' '.join(str(error).split())}")
    suggest_scoring(runs[0], recipe, on=errors)


def _read(name: str) -> str | None:
    """The next question or command, as it was typed or from a file or pipe; None at the end."""
    try:
        return input(f"{name}> ") if sys.stdin.isatty() else next(sys.stdin).rstrip("\r\n")
    except (EOFError, StopIteration):
        return None


def _obey(chat: Any, line: str) -> None:
    """Answer a question, or do what a command says."""
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    match word:
        case "/base":
            _base(chat, rest)
        case "/adapter" if rest:
            chat.switch(rest)
            note(_about(chat, rest))
        case "/adapter":
            _list_adapters(chat)
        case "/reset":
            chat.reset()
            note("the conversation is forgotten")
        case "/help":
            note(HELP)
        case _ if word.startswith("/"):
            raise unknown_name("command", word, [name.split()[0] for name in COMMANDS])
        case _ if line.strip():
            _answer(chat, line)


def _answer(chat: Any, question: str) -> None:
    with _stoppable() as stopped:
        answer = chat.ask(question, _show, stopped)
    _show("\n")
    if answer.dropped:
        note(f"the first {answer.dropped} turns have no room any more and were left out")


def _base(chat: Any, text: str) -> None:
    name, prompt = chat.base_prompt(text or None)
    say(Text("base:", "bold"))
    with _stoppable() as stopped:
        chat.write(name, prompt, _show, stopped, base=True)
    _show("\n")


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


def _show(piece: str) -> None:
    print(piece, end="", flush=True)  # as it is: rich would make blanks of tabs


@contextmanager
def _stoppable() -> Iterator[Any]:
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
