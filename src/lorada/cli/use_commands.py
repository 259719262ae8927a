"""The commands ``predict``, ``explore``, ``export`` and ``serve``: what finished runs are for."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from lorada.cli import options as opt
from lorada.cli.app import (
    app,
    console,
    importing,
    loaded_run,
    loading_model,
    next_is,
    note,
    print_json,
    say,
    suggest,
    waiting,
)
from lorada.cli.run_commands import become
from lorada.support.duration import counted
from lorada.support.error_messages import needs_extra
from lorada.support.files import as_typed, refuse_there, write_atomic
from lorada.support.row_sources import HEADED


@app.command(rich_help_panel=opt.TRAIN)
def predict(
    run: opt.RunFolder,
    text: Annotated[list[str] | None, typer.Option(help="a text; repeat for more")] = None,
    data: Annotated[str | None, typer.Option(help="rows: a file or a hub id")] = None,
    columns: opt.Columns = None,
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
    from lorada.inference.generate import say_cut
    from lorada.inference.predict import beside, predict, predict_to

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
) -> Any:
    """The recipe of a run, if what is asked of it can be done; before torch loads."""
    from lorada.data.read_rows import there
    from lorada.runs.folder import finished_run

    recipe = finished_run(run)
    if bool(texts) == (data is not None):
        raise ValueError("pass either --text TEXT or --data FILE")
    if output is not None:
        if output.suffix.lower() not in (".jsonl", ".csv"):
            raise ValueError(f"--output {output} is neither a .jsonl nor a .csv file: rename it")
        refuse_there(output, overwrite=overwrite)
    if data is not None:
        there(data)
    return recipe


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
        label = [answer["label"]] if labels else []
        number = answer["probs"][label[0]] if labels else answer["score"]
        table.add_row(name, *label, f"{number:.3f}")
    console.print(table)


@app.command(rich_help_panel=opt.TRAIN)
def explore(
    run: opt.RunFolder,
    text: Annotated[list[str], typer.Option(help="a sentence to show; may be given again")],
    output: Annotated[Path, typer.Option(help="the page")] = Path("explore.html"),
    overwrite: opt.Overwrite = False,
    remote: opt.Remote = False,
) -> None:
    """Show what an adapter does to sentences."""
    from lorada.runs.folder import finished_run

    recipe = finished_run(run)
    refuse_there(output, overwrite=overwrite)
    with needs_extra("explore"):
        import jinja2  # noqa: F401
    loaded = loaded_run(run, recipe.model, remote=remote, quiet=False)
    from lorada.explore.explore import explored
    from lorada.explore.explorer_page import explorer_page

    data = explored(loaded, text)
    with waiting("writing the page"):
        page = explorer_page(data)
        write_atomic(output, page)
    say(f"{output} ({len(page) / 2**20:.1f} MB)")
    if loaded.form in HEADED:
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
        print_json(written)
    else:
        _tell(target, written)


def _tell(target: Path, written: dict[str, Any]) -> None:
    """Print what was written into a folder, how a graph compares with torch, and what is next."""
    left, merged = (", ".join(written[key]) or "nothing" for key in ("adapter", "merged"))
    if "opset" in written:
        opset = f"ONNX opset {written['opset']}"
        say(f"{target}: {opset}; merged {merged}; in the graph {left}")
        say(f"logits differ from torch's by at most {written['difference']:.1e}")
    else:
        rest = f"adapter of {left}" if written["adapter"] else "no adapter is left"
        say(f"{target}: merged {merged}; {rest}")
    next_is(as_typed("cat", target / "README.md"))


@app.command(rich_help_panel=opt.TRAIN, context_settings={"ignore_unknown_options": True})
def serve(
    run: opt.RunFolder,
    options: Annotated[
        list[str] | None,
        typer.Argument(help="of `transformers serve`, such as --port 8001"),
    ] = None,
    remote: opt.Remote = False,
) -> None:
    """Serve a finished run to OpenAI's clients, by transformers' server."""
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

        served = served_folder(run, trust_remote_code=remote)
    note(f"the name for clients: {served.name}")
    # The folder's own name is the shortest that clients can be asked to give.
    become(["transformers", "serve", served.name, *more], folder=served.parent)
