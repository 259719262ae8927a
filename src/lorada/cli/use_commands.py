"""The commands that ask a finished run: ``evaluate``, ``generate``, ``chat``, ``predict``."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lorada.cli import options as opt
from lorada.cli.questions import Questions, folders_of, load_to_answer, vote_on
from lorada.cli.shared import (
    app,
    console,
    errors,
    load_with_spinner,
    loading_model,
    note,
    print_json,
    say,
    say_why,
    suggest,
    suggest_scoring,
)
from lorada.support.error_messages import unknown_name
from lorada.support.files import refuse_there
from lorada.support.in_words import answer_in_words, counted
from lorada.support.metric_names import LOSS, LOSS_ROWS
from lorada.support.row_sources import HEADED

MAX_LABELS = 5  # whose probabilities are printed for a text
MAX_LETTERS = 60  # of the commonest answer
# What an evaluation returns besides metrics; some of it is printed in sentences.
NO_METRICS = ("sha256", "answers_sha256", "unfound", "max_new_tokens", LOSS_ROWS, "commonest")
OWN_ROWS = ""  # the name of a user's rows among those of tasks
CHAT_KEYS = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the chat"
CHAT_COMMANDS = {
    "/base": "answer the last question with the base alone; it is not remembered",
    "/reset": "forget the conversation",
    "/help": "show this list",
    "/quit": "end the chat",
}

# In each command the checks that need no torch come first, then the imports of torch: a mistake is
# answered at once.


def recipe_to_score(
    run: Path, data: str | None, data_dir: str | None, metrics: Sequence[str] = ()
) -> Any:
    """The recipe of a finished run, after a check that the rows to score it on are there.

    Args:
        run: folder of the run.
        data: files of rows; None for those that the recipe names.
        data_dir: folder of the benchmarks' rows.
        metrics: those that the user names; none for that of the rows.

    Raises:
        FileNotFoundError: for rows that are not there.
        ValueError: for a folder that is no finished run, a metric that is code and was not named by
            the user, and a metric for a benchmark, which has its own.
    """
    from lorada.data.files.read_rows import DATA, OF_RUN, SHARED
    from lorada.data.rows.held_out_share import share_of
    from lorada.data.rows.training_rows import refuse_absent
    from lorada.data.scoring.row_metrics import refuse_unnamed
    from lorada.runs.folder import finished_run
    from lorada.runs.recipe import JSONL

    recipe = finished_run(run)
    if data is not None:
        refuse_absent(recipe, data, data_dir, DATA)
    elif share_of(recipe.eval_data) is not None:  # rows that the run has held out of its data
        refuse_absent(recipe, recipe.data, data_dir, SHARED)
    else:
        refuse_absent(recipe, recipe.eval_data, data_dir, OF_RUN)
    if not metrics:
        # A function of a file, which only the recipe names, is code that the user did not ask for.
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
    metrics = opt.parse_metrics(metric)
    recipe = recipe_to_score(run, data, data_dir, metrics)
    opt.refuse_columns(columns, data)
    loaded = load_with_spinner(run, recipe.model, remote=remote, quiet=as_json)
    from lorada.inference import evaluate as scoring
    from lorada.inference.generate import with_limit
    from lorada.runs.result import read_result

    loaded = with_limit(loaded, max_new_tokens)
    if data is None and scoring.has_tasks(loaded):
        scores_by_task = scoring.evaluate_tasks(loaded, data_dir, base=base, with_text=with_text)
    else:
        scores = scoring.evaluate(
            loaded, data, columns=columns, base=base, with_text=with_text, metrics=metrics
        )
        scores_by_task = {OWN_ROWS: scores}
    if as_json:
        print_json(scores_by_task.get(OWN_ROWS, scores_by_task))
        return
    _print_scores(scores_by_task)
    if not metrics:
        say_why(read_result(run).metric)
    suggest(*_command_to_ask(run, loaded))


def _command_to_ask(run: Path, loaded: Any) -> list[str]:
    """The command that asks a run for an answer, by what its rows were."""
    folder = str(run)
    if loaded.pairs:
        return ["predict", folder, "--data", "FILE"]
    if loaded.form in HEADED:
        return ["predict", folder, "--text", "TEXT"]
    if loaded.form == "messages":
        return ["chat", folder]
    return ["generate", folder, "--prompt", "TEXT"]


def _print_scores(scores_by_task: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the metrics of each task as a table; the rows of a user have no name of a task.

    Beside them stand those of the commonest answer, where there is one.
    """
    has_tasks = [*scores_by_task] != [OWN_ROWS]
    has_commonest = any(scores.get("commonest") for scores in scores_by_task.values())
    table = Table()
    if has_tasks:
        table.add_column("task")
    table.add_column("metric")
    table.add_column("value")
    if has_commonest:
        table.add_column("commonest")
    for task, scores in scores_by_task.items():
        for metric in scores:
            if metric in NO_METRICS:
                continue
            cells = [task] if has_tasks else []
            cells += [metric, _value_cell(metric, scores)]
            if has_commonest:
                cells.append(_commonest_cell(metric, scores))
            table.add_row(*cells)
    console.print(table)
    for task, scores in scores_by_task.items():
        _print_remarks(f"{task}: " if has_tasks else "", scores)


def _value_cell(metric: str, scores: Mapping[str, Any]) -> str:
    """The value of a metric, with the rows that a loss is of where it is not of all."""
    cell = _format_value(scores[metric])
    if metric == LOSS and LOSS_ROWS in scores:
        cell += f" ({scores[LOSS_ROWS]} of {scores['n']} rows)"
    return cell


def _commonest_cell(metric: str, scores: Mapping[str, Any]) -> str:
    """What the commonest answer scores by a metric; empty where it was not scored."""
    commonest = scores.get("commonest") or {}
    if metric not in commonest:
        return ""
    return _format_value(commonest[metric])


def _format_value(value: Any) -> str:
    """A value as a cell: numbers with three decimals, others as they are, None as undefined."""
    if value is None:
        return "undefined"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _print_remarks(prefix: str, scores: Mapping[str, Any]) -> None:
    """Print in sentences what the table of a task does not show; ``prefix`` names the task.

    These are the commonest answer, rows without a loss, answers that were cut, and rows that were
    not found.
    """
    commonest = scores.get("commonest")
    if commonest:
        answer = shorten(answer_in_words(commonest["answer"]), MAX_LETTERS, placeholder=" …")
        say(f"{prefix}commonest: the commonest answer of the training rows ({answer}), given to "
            "every row")  # fmt: skip
    if LOSS_ROWS in scores:
        left_out = scores["n"] - scores[LOSS_ROWS]
        has = "has" if left_out == 1 else "have"
        say(f"{prefix}the loss leaves out {counted(left_out, 'row')}, which {has} no token of a "
            "right response within max_length")  # fmt: skip
    if scores.get("cut"):
        cut = f"{prefix}{scores['cut']} of {scores['n']} answers were cut at"
        console.print(f"{cut} {scores['max_new_tokens']} tokens")
    if "unfound" in scores:
        say(f"{prefix}{scores['unfound']} were found")


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
    loaded = load_with_spinner(run, recipe.model, remote=remote, quiet=as_json)
    from lorada.inference import generate as generation

    outputs = generation.generate(loaded, prompt, max_new_tokens)
    if as_json:
        pairs = zip(prompt, outputs, strict=True)
        print_json([{"prompt": text, "output": output} for text, output in pairs])
        return
    for output in outputs:
        say(output)
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

        conversation = open_chat(run, max_new_tokens, system, trust_remote_code=remote)
    what_it_reads = "it continues each line by itself, as a prompt"
    if conversation.run.form == "messages":
        what_it_reads = "it reads the conversation so far, in the tokenizer's chat template"
    name = run.resolve().name
    # Only answers go to the output, so that a script gets nothing else.
    note(f"{name}: {recipe.method} on {recipe.model}; {what_it_reads}")
    note(CHAT_KEYS)
    with suppress(ImportError):
        import readline  # noqa: F401 (gives input() a history and the arrow keys)
    while True:
        line = _read_line(name)
        if line is None or line.strip() == "/quit":
            break
        try:
            _answer_line(conversation, line)
        except ValueError as error:  # what a user can mend does not end the chat
            note(f"error: {' '.join(str(error).split())}")
    suggest_scoring(run, recipe, on=errors)


def _read_line(name: str) -> str | None:
    """The next question or command, as it was typed or from a file or pipe; None at the end."""
    is_terminal = sys.stdin.isatty()
    try:
        if is_terminal:
            return input(f"{name}> ")
        return next(sys.stdin).rstrip("\r\n")
    except (EOFError, StopIteration):
        return None
    except KeyboardInterrupt:
        # Ctrl-C on an empty line does not end the chat; in a script it does.
        if not is_terminal:
            raise
        note("\nCtrl-D or /quit ends the chat")
        return ""


def _answer_line(chat: Any, line: str) -> None:
    """Answer a question, or do what a command says; an empty line does nothing.

    Raises ``ValueError`` for an unknown command, and for text behind ``/base``.
    """
    word, _, argument = line.partition(" ")
    match word:
        case "/base" if argument.strip():
            raise ValueError(f"/base answers the last question: leave {argument.strip()!r} out")
        case "/base":
            # Asked for first: where nothing was asked yet, nothing is to be printed.
            prompt = chat.base_prompt()
            say(Text("base:", "bold"))
            _show_answer(partial(chat.write, prompt, base=True))
        case "/reset":
            chat.reset()
            note("the conversation is forgotten")
        case "/help":
            note("\n".join(f"{name:14} {effect}" for name, effect in CHAT_COMMANDS.items()))
        case _ if word.startswith("/"):
            raise unknown_name("command", word, CHAT_COMMANDS)
        case _ if line.strip():
            _show_answer(partial(chat.ask, line))


def _show_answer(write: Callable[..., object]) -> None:
    """Show an answer piece by piece, until Ctrl-C."""
    write(_show_piece)
    _show_piece("\n")


def _show_piece(piece: str) -> None:
    """Print a piece of an answer at once, without a line's end."""
    print(piece, end="", flush=True)  # as it is: rich would make blanks of tabs


@app.command(rich_help_panel=opt.TRAIN)
def predict(
    run: Annotated[
        Path, typer.Argument(help="folder of a finished run; of several, as RUN,RUN, the vote")
    ],
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
    """Label, score or answer texts with a finished run, or by the vote of several."""
    opt.refuse_columns(columns, data)
    questions = Questions(text or [], data, columns)
    folders = folders_of(run)
    for folder in folders:  # all, before the first one is loaded
        _check_predict(folder, questions, output, overwrite=overwrite)
    if len(folders) > 1:
        input_rows, answers = vote_on(
            questions, folders, max_new_tokens, output,
            overwrite=overwrite, remote=remote, quiet=as_json,
        )  # fmt: skip
        _show_vote(run, questions, input_rows, answers, output, as_json=as_json)
        return
    loaded = load_to_answer(run, max_new_tokens, remote=remote, quiet=as_json)
    from lorada.inference.generate import say_cut
    from lorada.inference.predict import predict

    input_rows = questions.read()
    rows = questions.rows_for(loaded, input_rows)
    if output is None:
        answers = list(chain.from_iterable(predict(loaded, rows)))
        say_cut(loaded, [answer.get("cut", False) for answer in answers])
        _print_answers(run, questions, input_rows, answers, as_json=as_json)
        return
    _predict_to_file(run, loaded, rows, input_rows, output, overwrite=overwrite, as_json=as_json)


def _predict_to_file(
    run: Path,
    loaded: Any,
    rows: Any,
    input_rows: list[Any],
    output: Path,
    *,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the answers of a run, and say how many there are and what is next."""
    from lorada.inference.predict import predict_to

    try:
        answered_before = predict_to(loaded, rows, input_rows, output, overwrite=overwrite)
    except KeyboardInterrupt:
        note("stopped: the same command goes on where it was")
        raise
    if answered_before:
        note(f"the first {answered_before:,} rows were answered before")
    row_count = len(rows.rows)
    if as_json:
        print_json({"output": str(output), "rows": row_count, "answered_before": answered_before})
        return
    say(f"{output}: {counted(row_count, 'row')}")
    if loaded.form in HEADED:  # which no server answers with
        suggest("export", run, "DIR")
    else:
        suggest("serve", run)


def _show_vote(
    runs: Path,
    questions: Questions,
    input_rows: list[Any],
    answers: list[Any],
    output: Path | None,
    *,
    as_json: bool,
) -> None:
    """Print what several runs have answered together, or where it was written, and what is next.

    Args:
        runs: the folders as the user names them, ``RUN,RUN``.
        questions: what was asked.
        input_rows: the rows as they were read.
        answers: one to each.
        output: the file that they were written to; None for none.
        as_json: whether to print for programs.
    """
    if output is None:
        _print_answers(runs, questions, input_rows, answers, as_json=as_json)
    elif as_json:
        print_json({"output": str(output), "rows": len(answers)})
    else:
        say(f"{output}: {counted(len(answers), 'row')}")
        suggest("export", folders_of(runs)[0], "DIR")


def _print_answers(
    runs: Path, questions: Questions, input_rows: list[Any], answers: list[Any], *, as_json: bool
) -> None:
    """Print answers that go to no file: as JSON beside their rows, or as a table and what is next.

    ``runs`` is the run, or ``RUN,RUN``, as the user names it.
    """
    from lorada.inference.predict import beside

    if as_json:
        print_json(beside(input_rows, answers))
        return
    _show_answers(answers, questions.texts)
    suggest("predict", runs, "--data", questions.data or "FILE", "--output", "answers.csv")


def _check_predict(
    run: Path, questions: Questions, output: Path | None, *, overwrite: bool
) -> None:
    """Refuse, before torch loads, an unfinished run, missing rows, and an output of no use."""
    from lorada.data.files.read_rows import refuse_missing
    from lorada.runs.folder import finished_run

    finished_run(run)
    if bool(questions.texts) == (questions.data is not None):  # both or neither
        raise ValueError("pass either --text TEXT or --data FILE")
    if output is not None:
        if output.suffix.lower() not in (".jsonl", ".csv"):
            raise ValueError(f"--output {output} is neither a .jsonl nor a .csv file: rename it")
        refuse_there(output, overwrite=overwrite)
    if questions.data is not None:
        refuse_missing(questions.data)


def _show_answers(answers: list[dict[str, Any]], texts: list[str]) -> None:
    """Print answers: those that are texts as they are, others in a table."""
    # All answers of a run are of one form, so the first one tells which.
    if "answer" in answers[0]:
        for answer in answers:
            parts = [str(answer[name]) for name in ("answer", "candidate") if name in answer]
            say(" ".join(parts))
        return
    names = texts or [f"row {answer['row']}" for answer in answers]
    if "labels" in answers[0]:
        table = _labels_table(names, answers)
    elif "label" in answers[0]:
        table = Table("text", "label", "probability")
        for name, answer in zip(names, answers, strict=True):
            label = answer["label"]
            table.add_row(name, label, f"{answer['probs'][label]:.3f}")
    else:
        table = Table("text", "score")
        for name, answer in zip(names, answers, strict=True):
            table.add_row(name, f"{answer['score']:.3f}")
    console.print(table)


def _labels_table(names: list[str], answers: list[dict[str, Any]]) -> Table:
    """The labels of each text, with the probabilities of the likeliest."""
    table = Table("text", "labels", "probabilities")
    for name, answer in zip(names, answers, strict=True):
        likeliest = sorted(answer["probs"].items(), key=lambda pair: -pair[1])
        probabilities = [f"{label} {prob:.3f}" for label, prob in likeliest[:MAX_LABELS]]
        cell = ", ".join(probabilities)
        if len(likeliest) > MAX_LABELS:
            cell += " …"
        table.add_row(name, ", ".join(answer["labels"]) or "none", cell)
    return table
