"""The commands that use finished runs: ``evaluate``, ``generate``, ``chat``, ``predict`` …"""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from lorada.cli import options as opt
from lorada.cli.shared import (
    app,
    console,
    errors,
    importing,
    loaded_run,
    loading_model,
    next_is,
    note,
    print_json,
    say,
    say_why,
    suggest,
    suggest_scoring,
    waiting,
)
from lorada.support.error_messages import needs_extra, unknown_name
from lorada.support.files import as_typed, refuse_there, write_atomic
from lorada.support.in_words import answer_in_words, counted
from lorada.support.metric_names import LOSS, LOSS_ROWS
from lorada.support.row_sources import HEADED

MOST_LABELS = 5  # of a text, whose probabilities are printed
# Of the metrics; some are said in words.
NOT_SHOWN = ("sha256", "answers_sha256", "unfound", "max_new_tokens", LOSS_ROWS, "commonest")
MOST_LETTERS = 60  # of the commonest answer
CHAT_KEYS = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the chat"
CHAT_COMMANDS = {
    "/base": "answer the last question with the base alone; it is not remembered",
    "/reset": "forget the conversation",
    "/help": "show this list",
    "/quit": "end the chat",
}
SITE = Path(__file__).parent / "site"  # its sitecustomize.py is imported when Python starts


def scored_run(
    run: Path, data: str | None, data_dir: str | None, metrics: Sequence[str] = ()
) -> Any:
    """The recipe of a finished run, if the rows to score it on are there; before torch loads.

    ``data`` are files of rows, None for those of the recipe; ``metrics`` are those asked for.
    """
    from lorada.data.metrics import refuse_unnamed
    from lorada.data.read_rows import DATA, OF_RUN, SHARED, share_of
    from lorada.data.task_rows import refuse_absent
    from lorada.runs.folder import finished_run
    from lorada.runs.recipe import JSONL

    recipe = finished_run(run)
    if data is not None:
        refuse_absent(recipe, data, data_dir, DATA)
    elif share_of(recipe.eval_data) is not None:
        refuse_absent(recipe, recipe.data, data_dir, SHARED)
    else:
        refuse_absent(recipe, recipe.eval_data, data_dir, OF_RUN)
    if not metrics:
        refuse_unnamed(recipe.metric, run)
    elif data is None and recipe.task != JSONL:
        raise ValueError(
            f"--metric {','.join(metrics)} is for rows of your own, and task={recipe.task} has its "
            "own: leave it out"
        )
    return recipe


@app.command(rich_help_panel=opt.TRAIN)
def evaluate(
    run: opt.RunFolder,
    data: Annotated[str | None, typer.Option(help="held-out rows; else the recipe's")] = None,
    columns: opt.Columns = None,
    data_dir: opt.DataDir = None,
    base: Annotated[bool, typer.Option("--base", help="score the base alone")] = False,
    metric: opt.Metrics = None,
    max_new_tokens: opt.MaxNewTokens = None,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="keep the text of each row too")
    ] = False,
    remote: opt.Remote = False,
    as_json: opt.Json = False,
) -> None:
    """Score a finished run on held-out rows, or on the test rows of its tasks."""
    metrics = opt.metrics_of(metric)
    recipe = scored_run(run, data, data_dir, metrics)
    opt.refuse_columns(columns, data)
    loaded = loaded_run(run, recipe.model, remote=remote, quiet=as_json)
    from lorada.inference import evaluate as scoring
    from lorada.inference.generate import with_limit
    from lorada.runs.result import read_result

    loaded = with_limit(loaded, max_new_tokens)
    if data is None and scoring.has_tasks(loaded):
        found = scoring.evaluate_tasks(loaded, data_dir, base=base, with_text=with_text)
    else:
        scored = scoring.evaluate(
            loaded, data, columns=columns, base=base, with_text=with_text, metrics=metrics
        )
        found = {"": scored}
    if as_json:
        print_json(found.get("", found))
        return
    _print_scores(found)
    if not metrics:
        say_why(read_result(run).metric)
    if loaded.pairs:
        suggest("predict", run, "--data", "FILE")
    elif loaded.form in HEADED:
        suggest("predict", run, "--text", "TEXT")
    elif loaded.form == "messages":
        suggest("chat", run)
    else:
        suggest("generate", run, "--prompt", "TEXT")


def _print_scores(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the metrics of each task as a table; the rows of a user have no name of a task.

    Beside them stand those of the commonest answer, where there is one.
    """
    own = [*found] == [""]
    compared = any(metrics.get("commonest") for metrics in found.values())
    heads = [*([] if own else ["task"]), "metric", "value", *(["commonest"] if compared else [])]
    table = Table(*heads)
    for task, metrics in found.items():
        commonest = metrics.get("commonest") or {}
        for name, value in metrics.items():
            if name in NOT_SHOWN:
                continue
            cells = [*([] if own else [task]), name, _in_table(value)]
            if name == LOSS and LOSS_ROWS in metrics:
                cells[-1] += f" ({metrics[LOSS_ROWS]} of {metrics['n']} rows)"
            if compared:
                cells.append(_in_table(commonest[name]) if name in commonest else "")
            table.add_row(*cells)
    console.print(table)
    for task, metrics in found.items():
        _print_remarks("" if own else f"{task}: ", metrics)


def _in_table(value: Any) -> str:
    """The value of a metric as a table shows it."""
    if value is None:
        return "undefined"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _print_remarks(before: str, metrics: Mapping[str, Any]) -> None:
    """Print what the metrics of one task say in words, behind its name."""
    if commonest := metrics.get("commonest"):
        answer = shorten(answer_in_words(commonest["answer"]), MOST_LETTERS, placeholder=" …")
        say(f"{before}commonest: the commonest answer of the training rows ({answer}), given to "
            "every row")  # fmt: skip
    if LOSS_ROWS in metrics:
        rest = metrics["n"] - metrics[LOSS_ROWS]
        has = "has" if rest == 1 else "have"
        say(f"{before}the loss leaves out {counted(rest, 'row')}, which {has} no token of a right "
            "response within max_length")  # fmt: skip
    if metrics.get("cut"):
        said = f"{before}{metrics['cut']} of {metrics['n']} answers were cut at"
        console.print(f"{said} {metrics['max_new_tokens']} tokens")
    if "unfound" in metrics:
        say(f"{before}{metrics['unfound']} were found")


@app.command(rich_help_panel=opt.TRAIN)
def generate(
    run: opt.RunFolder,
    prompt: Annotated[list[str], typer.Option(help="a text to continue; repeat for more")],
    max_new_tokens: opt.MaxNewTokens = None,
    remote: opt.Remote = False,
    as_json: opt.Json = False,
) -> None:
    """Continue prompts with a run that writes; predict does it for files of rows."""
    from lorada.runs.folder import writer

    recipe = writer(run)
    loaded = loaded_run(run, recipe.model, remote=remote, quiet=as_json)
    from lorada.inference import generate as generation

    outputs = generation.generate(loaded, prompt, max_new_tokens)
    if as_json:
        print_json([{"prompt": p, "output": o} for p, o in zip(prompt, outputs, strict=True)])
        return
    for text in outputs:
        say(text)
    suggest_scoring(run, recipe)


@app.command(rich_help_panel=opt.TRAIN)
def chat(
    run: opt.RunFolder,
    system: Annotated[
        str | None, typer.Option(help="what the conversation begins with, as the system's turn")
    ] = None,
    max_new_tokens: opt.MaxNewTokens = None,
    remote: opt.Remote = False,
) -> None:
    """Chat with a finished run in the terminal, with the base's answers beside its own."""
    from lorada.runs.folder import writer
    from lorada.runs.result import read_result

    recipe = writer(run)
    if system is not None and read_result(run).form != "messages":
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
    # Only answers go to the output, so that a script gets nothing else.
    note(f"{name}: {recipe.method} on {recipe.model}; {how}")
    note(CHAT_KEYS)
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
            note("\n".join(f"{name:14} {what}" for name, what in CHAT_COMMANDS.items()))
        case _ if word.startswith("/"):
            raise unknown_name("command", word, CHAT_COMMANDS)
        case _ if line.strip():
            _answer(partial(chat.ask, line))


def _answer(write: Callable[..., object]) -> None:
    """Show an answer piece by piece, until Ctrl-C."""
    write(_show_piece)
    _show_piece("\n")


def _show_piece(piece: str) -> None:
    print(piece, end="", flush=True)  # as it is: rich would make blanks of tabs


@app.command(rich_help_panel=opt.TRAIN)
def predict(
    run: opt.RunFolder,
    text: Annotated[list[str] | None, typer.Option(help="a text; repeat for more")] = None,
    data: Annotated[str | None, typer.Option(help="rows: a file or a hub id")] = None,
    columns: opt.Columns = None,
    max_new_tokens: opt.MaxNewTokens = None,
    output: Annotated[
        Path | None, typer.Option(help="file for the answers, .jsonl or .csv; else they are shown")
    ] = None,
    overwrite: opt.Overwrite = False,
    remote: opt.Remote = False,
    as_json: opt.Json = False,
) -> None:
    """Label, score or answer texts with a finished run."""
    opt.refuse_columns(columns, data)
    texts = text or []
    recipe = _checked(run, texts, data, output, overwrite=overwrite)
    loaded = loaded_run(run, recipe.model, remote=remote, quiet=as_json)
    from lorada.data.read_rows import read_rows
    from lorada.data.task_rows import rows_to_answer
    from lorada.inference.generate import say_cut, with_limit
    from lorada.inference.predict import beside, predict, predict_to

    loaded = with_limit(loaded, max_new_tokens)
    given = [{"text": one} for one in texts] if data is None else read_rows(data)
    named = None if data is None else recipe.columns
    learned = loaded.form, loaded.labels
    rows = rows_to_answer(given, data or "--text", *learned, columns, named, pairs=loaded.pairs)
    if output is None:
        answers = [answer for part in predict(loaded, rows) for answer in part]
        say_cut(loaded, [answer.get("cut", False) for answer in answers])
        if as_json:
            print_json(beside(given, answers))
            return
        _show_answers(answers, texts)
        suggest("predict", run, "--data", data or "FILE", "--output", "answers.csv")
        return
    try:
        before = predict_to(loaded, rows, given, output, overwrite=overwrite)
    except KeyboardInterrupt:
        note("stopped: the same command goes on where it was")
        raise
    if before:
        note(f"the first {before:,} rows were answered before")
    if as_json:
        print_json({"output": str(output), "rows": len(rows.rows), "answered_before": before})
        return
    say(f"{output}: {counted(len(rows.rows), 'row')}")
    if loaded.form in HEADED:  # which no server answers with
        suggest("export", run, "DIR")
    else:
        suggest("serve", run)


def _checked(
    run: Path, texts: list[str], data: str | None, output: Path | None, *, overwrite: bool
) -> Any:
    """The recipe of a run, if what is asked of it can be done; before torch loads."""
    from lorada.data.read_rows import refuse_missing
    from lorada.runs.folder import finished_run

    recipe = finished_run(run)
    if bool(texts) == (data is not None):
        raise ValueError("pass either --text TEXT or --data FILE")
    if output is not None:
        if output.suffix.lower() not in (".jsonl", ".csv"):
            raise ValueError(f"--output {output} is neither a .jsonl nor a .csv file: rename it")
        refuse_there(output, overwrite=overwrite)
    if data is not None:
        refuse_missing(data)
    return recipe


def _show_answers(answers: list[dict[str, Any]], texts: list[str]) -> None:
    """Print answers: those that are texts as they are, others in a table."""
    if "answer" in answers[0]:
        for answer in answers:
            shown = [str(answer[name]) for name in ("answer", "candidate") if name in answer]
            say(" ".join(shown))
        return
    named = texts or [f"row {answer['row']}" for answer in answers]
    if "labels" in answers[0]:
        table = Table("text", "labels", "probabilities")
        for name, answer in zip(named, answers, strict=True):
            likeliest = sorted(answer["probs"].items(), key=lambda pair: -pair[1])
            probs = ", ".join(f"{label} {prob:.3f}" for label, prob in likeliest[:MOST_LABELS])
            more = " …" if likeliest[MOST_LABELS:] else ""
            table.add_row(name, ", ".join(answer["labels"]) or "none", f"{probs}{more}")
        console.print(table)
        return
    labels = "label" in answers[0]
    table = Table("text", *(("label", "probability") if labels else ("score",)))
    for name, answer in zip(named, answers, strict=True):
        label = [answer["label"]] if labels else []
        number = answer["probs"][label[0]] if labels else answer["score"]
        table.add_row(name, *label, f"{number:.3f}")
    console.print(table)


@app.command(rich_help_panel=opt.TRAIN)
def explore(
    run: opt.RunFolder,
    text: Annotated[list[str], typer.Option(help="a sentence to show; may be given again")],
    text_pair: Annotated[
        list[str] | None, typer.Option(help="its pair, for a run that learned pairs of texts")
    ] = None,
    output: Annotated[Path, typer.Option(help="the page")] = Path("explore.html"),
    overwrite: opt.Overwrite = False,
    remote: opt.Remote = False,
) -> None:
    """Show what an adapter does to sentences."""
    from lorada.runs.folder import finished_run

    recipe = finished_run(run)
    if output.suffix not in (".html", ".htm"):
        raise ValueError(f"--output {output}: the page is for a browser, so name it .html")
    refuse_there(output, overwrite=overwrite)
    with needs_extra("explore"):
        import jinja2  # noqa: F401
    loaded = loaded_run(run, recipe.model, remote=remote, quiet=False)
    from lorada.explore.explorer_page import explorer_page
    from lorada.explore.page_data import compute_page_data, pair_sentences

    data = compute_page_data(loaded, pair_sentences(text, text_pair))
    with waiting("writing the page"):
        page = explorer_page(data)
        write_atomic(output, page)
    say(f"{output} ({len(page) / 2**20:.1f} MB)")
    if loaded.pairs:
        suggest("predict", run, "--data", "FILE")
    elif loaded.form in HEADED:
        suggest("predict", run, "--text", text[0])
    else:
        suggest("chat", run)


@app.command(rich_help_panel=opt.TRAIN)
def export(
    run: opt.RunFolder,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="new folder for the model")],
    form: Annotated[
        Literal["transformers", "onnx"], typer.Option("--format", help="onnx is a graph (an extra)")
    ] = "transformers",
    remote: opt.Remote = False,
    as_json: opt.Json = False,
) -> None:
    """Write a finished run as one model folder, with an adapter for what cannot be merged."""
    from lorada.runs.folder import finished_run, refuse_target

    finished_run(run)
    refuse_target(run, target)
    with needs_extra("onnx"):
        for package in ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ():
            import_module(package)
    with importing(quiet=as_json):
        from transformers.utils import logging

        from lorada.inference import export as whole

    if form == "onnx":
        logging.disable_progress_bar()  # the spinner replaces it
        with waiting("tracing the model and comparing the graph with torch", quiet=as_json):
            written = whole.export_onnx(run, target, trust_remote_code=remote)
    else:
        written = whole.export(run, target, trust_remote_code=remote)
    if as_json:
        print_json(written.plain())
    else:
        _tell(written)


def _tell(exported: Any) -> None:
    """Print what was written into a folder, how a graph compares with torch, and what is next."""
    merged = ", ".join(exported.merged) or "nothing"
    left = ", ".join(exported.adapter) or "nothing"
    if exported.opset is not None:
        opset = f"ONNX opset {exported.opset}"
        say(f"{exported.folder}: {opset}; merged {merged}; in the graph {left}")
        say(f"logits differ from torch's by at most {exported.difference:.1e}")
    else:
        rest = f"adapter of {left}" if exported.adapter else "no adapter is left"
        say(f"{exported.folder}: merged {merged}; {rest}")
    next_is(as_typed("cat", exported.folder / "README.md"))


@app.command(rich_help_panel=opt.TRAIN, context_settings={"ignore_unknown_options": True})
def serve(
    run: opt.RunFolder,
    options: Annotated[
        list[str] | None, typer.Argument(help="of `transformers serve`, such as --port 8001")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="most tokens of an answer; a request for more is refused")
    ] = 4096,
    remote: opt.Remote = False,
) -> None:
    """Serve a finished run, and its base, to OpenAI's clients, by transformers' server."""
    from lorada.runs.folder import writer

    more = [*(options or ()), *(["--trust-remote-code"] if remote else [])]
    if str(run).startswith("-") or (more and not more[0].startswith("-")):
        raise ValueError("give one run, then options of transformers: lorada serve RUN --port 8001")
    recipe = writer(run)
    with needs_extra("serve"):
        for package in ("fastapi", "openai", "uvicorn"):
            import_module(package)
    with loading_model(recipe.model):
        from lorada.inference.export import served_folder
        from lorada.inference.serving.names import base_name

        served = served_folder(run, trust_remote_code=remote)
    names = served.name
    if served.with_name(base_name(names)).is_dir() and "--continuous-batching" not in more:
        names = f"{names}; {base_name(names)} is its base"
    note(f"the name for clients: {names}")
    # The folder's own name is the shortest that clients can be asked to give.
    program = [sys.executable, "-P", "-m", "lorada.inference.serving.program"]
    become([*program, str(max_tokens), served.name, *more], folder=served.parent)


# All words after the program's name, even `--help`, are passed to the program. It takes the place
# of this process, so that exit code and signals are its own.
@app.command(
    rich_help_panel=opt.TRAIN,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def run(
    command: Annotated[list[str], typer.Argument(metavar="CMD", help="program and its arguments")],
) -> None:
    """Run another program (lm_eval, trl, accelerate …) that loads adapters of lorada."""
    become(command)


def become(command: list[str], folder: Path | None = None) -> None:
    """Go on as another program that loads adapters of lorada, in a ``folder`` if that is given."""
    own_folder = str(Path(sys.executable).parent)  # where a program has the same packages
    program = shutil.which(command[0], path=own_folder) or shutil.which(command[0])
    if program is None:
        raise ValueError(f"no command {command[0]!r} on PATH: is it installed?")
    own = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    path = os.pathsep.join((str(SITE), *map(os.path.abspath, own)))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, and so by what it starts
        signal.signal(number, signal.SIG_DFL)
    if folder is not None:
        os.chdir(folder)
    # The full path, because a Python finds its environment by this name.
    os.execve(program, [program, *command[1:]], {**os.environ, "PYTHONPATH": path})
