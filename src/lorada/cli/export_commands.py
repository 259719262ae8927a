"""The commands that hand a finished run on: ``explore``, ``export``, ``serve``, ``run``."""

import os
import shutil
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lorada.cli import options as opt
from lorada.cli.shared import (
    app,
    importing,
    load_with_spinner,
    loading_model,
    note,
    print_json,
    say,
    spinner,
    suggest,
    suggest_line,
)
from lorada.support.error_messages import needs_extra
from lorada.support.files import as_typed, refuse_there, write_atomic
from lorada.support.row_sources import HEADED

if TYPE_CHECKING:
    from lorada.inference.export import Exported

SITE = Path(__file__).parent / "site"  # its sitecustomize.py is imported when Python starts


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
    with needs_extra("explore"):  # before the model is loaded, though the page comes last
        import jinja2  # noqa: F401
    loaded = load_with_spinner(run, recipe.model, remote=remote, quiet=False)
    from lorada.explore.explorer_page import explorer_page
    from lorada.explore.page_data import compute_page_data, pair_sentences

    data = compute_page_data(loaded, pair_sentences(text, text_pair))
    with spinner("writing the page"):
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
    format_name: Annotated[
        Literal["transformers", "onnx"], typer.Option("--format", help="onnx is a graph (an extra)")
    ] = "transformers",
    remote: opt.Remote = False,
    as_json: opt.Json = False,
) -> None:
    """Write a finished run as one model folder, with an adapter for what cannot be merged."""
    from lorada.runs.folder import finished_run, refuse_target

    finished_run(run)
    refuse_target(run, target)
    if format_name == "onnx":
        with needs_extra("onnx"):
            for package in ("onnx", "onnxscript", "onnxruntime"):
                import_module(package)
    with importing(quiet=as_json):
        from transformers.utils import logging

        from lorada.inference import export as exporting

    if format_name == "onnx":
        logging.disable_progress_bar()  # the spinner replaces it
        with spinner("tracing the model and comparing the graph with torch", quiet=as_json):
            exported = exporting.export_onnx(run, target, trust_remote_code=remote)
    else:
        exported = exporting.export(run, target, trust_remote_code=remote)
    if as_json:
        print_json(exported.plain())
    else:
        _print_export(exported)


def _print_export(exported: "Exported") -> None:
    """Print what was written into a folder, how a graph compares with torch, and what is next."""
    merged = ", ".join(exported.merged) or "nothing"
    unmerged = ", ".join(exported.adapter) or "nothing"
    if exported.opset is not None:
        opset = f"ONNX opset {exported.opset}"
        say(f"{exported.folder}: {opset}; merged {merged}; in the graph {unmerged}")
        say(f"logits differ from torch's by at most {exported.difference:.1e}")
    elif exported.adapter:
        say(f"{exported.folder}: merged {merged}; adapter of {unmerged}")
    else:
        say(f"{exported.folder}: merged {merged}; no adapter is left")
    suggest_line(as_typed("cat", exported.folder / "README.md"))


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

    server_options = list(options or [])
    if remote:
        server_options.append("--trust-remote-code")
    # typer takes any word for the run and the options, whatever stands first.
    is_option = str(run).startswith("-")
    has_second_run = bool(server_options) and not server_options[0].startswith("-")
    if is_option or has_second_run:
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
    # Under continuous batching a request to the base would end all answers that are being written.
    has_base = served.with_name(base_name(names)).is_dir()
    if has_base and "--continuous-batching" not in server_options:
        names = f"{names}; {base_name(names)} is its base"
    note(f"the name for clients: {names}")
    # The folder's own name is the shortest that clients can be asked to give.
    program = [sys.executable, "-P", "-m", "lorada.inference.serving.program"]
    become([*program, str(max_tokens), served.name, *server_options], folder=served.parent)


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
    environment_folder = str(Path(sys.executable).parent)  # a program there has the same packages
    program = shutil.which(command[0], path=environment_folder) or shutil.which(command[0])
    if program is None:
        raise ValueError(f"no command {command[0]!r} on PATH: is it installed?")
    # Absolute, since another folder may be gone to.
    user_paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    python_path = os.pathsep.join([str(SITE), *map(os.path.abspath, user_paths)])
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python, and so by what it starts
        signal.signal(number, signal.SIG_DFL)
    if folder is not None:
        os.chdir(folder)
    # The full path, because a Python finds its environment by this name.
    os.execve(program, [program, *command[1:]], {**os.environ, "PYTHONPATH": python_path})
