"""The command ``predict``: a finished run's answers to texts or rows without labels."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lorada.cli.app import (
    Columns,
    Json,
    Remote,
    RunFolder,
    app,
    columns_of,
    console,
    loaded_run,
    note,
    print_json,
    say,
    suggest,
)
from lorada.cli.queue_options import Overwrite
from lorada.support.duration import counted
from lorada.support.files import refuse_there
from lorada.support.row_sources import HEADED


@app.command()
def predict(
    run: RunFolder,
    text: Annotated[list[str] | None, typer.Option(help="a text; repeat for more")] = None,
    data: Annotated[str | None, typer.Option(help="rows: a file or a hub id")] = None,
    columns: Columns = None,
    output: Annotated[
        Path | None, typer.Option(help="file for the answers, .jsonl or .csv; else they are shown")
    ] = None,
    overwrite: Overwrite = False,
    remote: Remote = False,
    as_json: Json = False,
) -> None:
    """Label, score or answer texts with a finished run: --text, --data, or each line of stdin."""
    named = columns_of(columns, data)
    texts = text or ([] if data is not None else _lines())
    recipe, rows = _checked(run, texts, data, output, overwrite=overwrite)
    loaded = loaded_run(run, recipe.model, remote=remote, quiet=as_json)
    from lorada.data.rows import read_rows
    from lorada.data.task_rows import rows_to_answer
    from lorada.inference.predict import beside, predict, predict_to, say_cut

    given = [{"text": one} for one in texts] if rows is not None else read_rows(str(data))
    if rows is None:
        rows = rows_to_answer(
            given, str(data), loaded.form, loaded.labels, named, recipe.columns, pairs=loaded.pairs
        )
    if output is None:
        answers = [answer for part in predict(loaded, rows) for answer in part]
        say_cut(loaded, answers)
        if as_json:
            print_json(beside(given, answers))
            return
        _show(answers, texts)
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
    suggest("serve", run)


def _checked(
    run: Path, texts: list[str], data: str | None, output: Path | None, *, overwrite: bool
) -> tuple[Any, Any]:
    """The recipe of a run, and the texts as rows, None for rows of a file; before torch loads."""
    from lorada.data.rows import there
    from lorada.data.task_rows import rows_to_answer
    from lorada.runs.folder import finished_run
    from lorada.runs.result import read_result

    recipe, result = finished_run(run), read_result(run)
    if texts and data is not None:
        raise ValueError(f"--text {texts[0]!r} and --data {data} exclude each other: leave one out")
    if output is not None:
        if output.suffix.lower() not in (".jsonl", ".csv"):
            raise ValueError(f"--output {output} is neither a .jsonl nor a .csv file: rename it")
        refuse_there(output, overwrite=overwrite)
    if data is not None:
        there(data)
        return recipe, None
    rows: Any = [{"text" if result["form"] in HEADED else "prompt": text} for text in texts]
    learned = result["form"], tuple(result["labels"])
    return recipe, rows_to_answer(rows, "--text", *learned, pairs=result.get("pairs", False))


def _lines() -> list[str]:
    """The lines of a file or pipe; refuses a terminal, where a person would have to type them."""
    found = "" if sys.stdin.isatty() else sys.stdin.read()
    found = found.removeprefix("\ufeff").replace("\r\n", "\n")  # as files of Windows have them
    if not found:
        raise ValueError("there is nothing to answer: pass --text TEXT, --data FILE, or a pipe")
    return found.removesuffix("\n").split("\n")  # splitlines() also splits at U+2028


def _show(answers: list[dict[str, Any]], texts: list[str]) -> None:
    """Print answers: those that are texts as they are, others in a table."""
    if "answer" in answers[0]:
        for answer in answers:
            shown = [str(answer[name]) for name in ("answer", "candidate") if name in answer]
            say(" ".join(shown))
        return
    labels = "label" in answers[0]
    table = Table("text", *(("label", "probability") if labels else ("score",)))
    named = texts or [f"row {answer['row']}" for answer in answers]
    for name, answer in zip(named, answers, strict=True):
        label = [str(answer["label"])] if labels else []  # which may be a number
        number = answer["probs"][label[0]] if labels else answer["score"]
        table.add_row(name, *label, f"{number:.3f}")
    console.print(table)
