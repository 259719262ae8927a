"""The command ``chat``: a conversation in the terminal with a finished run.

Answers go to the output, everything else to the error stream, so that a script gets answers alone.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

import typer
from rich.text import Text

from lorada.cli import options as opt
from lorada.cli.app import app, errors, loading_model, note, say
from lorada.cli.run_commands import suggest_scoring
from lorada.support.error_messages import unknown_name

KEYS = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the chat"
COMMANDS = {
    "/base": "answer the last question with the base alone; it is not remembered",
    "/reset": "forget the conversation",
    "/help": "show this list",
    "/quit": "end the chat",
}


@app.command(rich_help_panel=opt.TRAIN)
def chat(
    run: opt.RunFolder,
    system: Annotated[
        str | None, typer.Option(help="what the conversation begins with, as the system's turn")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="tokens to generate")] = None,
    remote: opt.Remote = False,
) -> None:
    """Chat with a finished run in the terminal, with the base's answers beside its own."""
    from lorada.runs.folder import writer
    from lorada.runs.result import read_result

    recipe = writer(run)
    if system is not None and read_result(run)["form"] != "messages":
        raise ValueError(
            f"--system is for runs that learned conversations, and {run} continues each line by "
            "itself: write it at the beginning of the line"
        )
    with loading_model(recipe.model):
        from lorada.inference.chat import open_chat

        opened = open_chat(run, max_new_tokens, system, trust_remote_code=remote)
    how = "it continues each line by itself, as a prompt"
    if opened.run.form == "messages":
        how = "it reads the conversation so far, in the tokenizer's chat template"
    name = run.resolve().name
    note(f"{name}: {recipe.method} on {recipe.model}; {how}")
    note(KEYS)
    with suppress(ImportError):
        import readline  # noqa: F401 (gives input() a history and the arrow keys)
    while (line := _read(name)) is not None and line.strip() != "/quit":
        try:
            _obey(opened, line)
        except ValueError as error:
            note(f"error: {' '.join(str(error).split())}")
    suggest_scoring(run, recipe, on=errors)


def _read(name: str) -> str | None:
    """The next question or command, as it was typed or from a file or pipe; None at the end."""
    terminal = sys.stdin.isatty()
    try:
        return input(f"{name}> ") if terminal else next(sys.stdin).rstrip("\r\n")
    except (EOFError, StopIteration):
        return None
    except KeyboardInterrupt:
        if not terminal:
            raise
        note("\nCtrl-D or /quit ends the chat")
        return ""


def _obey(chat: Any, line: str) -> None:
    """Answer a question, or do what a command says."""
    word, _, rest = line.partition(" ")
    match word:
        case "/base" if rest.strip():
            raise ValueError(f"/base answers the last question: leave {rest.strip()!r} out")
        case "/base":
            prompt = chat.base_prompt()
            say(Text("base:", "bold"))
            _answer(partial(chat.write, prompt, base=True))
        case "/reset":
            chat.reset()
            note("the conversation is forgotten")
        case "/help":
            note("\n".join(f"{name:14} {what}" for name, what in COMMANDS.items()))
        case _ if word.startswith("/"):
            raise unknown_name("command", word, COMMANDS)
        case _ if line.strip():
            _answer(partial(chat.ask, line))


def _answer(write: Callable[..., object]) -> None:
    """Show an answer piece by piece, until Ctrl-C."""
    write(_show)
    _show("\n")


def _show(piece: str) -> None:
    print(piece, end="", flush=True)  # as it is: rich would make blanks of tabs
