"""The command ``lorada export``."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lorada.cli.app import (
    Json,
    Remote,
    RunFolder,
    app,
    importing,
    next_is,
    print_json,
    say,
    waiting,
)
from lorada.support.errors import missing_package
from lorada.support.files import as_typed

ONNX_PACKAGES = "onnx", "onnxscript", "onnxruntime"  # of the extra


@app.command()
def export(
    run: RunFolder,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="new folder for the model")],
    form: Annotated[
        Literal["transformers", "onnx"], typer.Option("--format", help="onnx is a graph (an extra)")
    ] = "transformers",
    remote: Remote = False,
    as_json: Json = False,
) -> None:
    """Write a finished run as one model folder, with an adapter for what cannot be merged."""
    from lorada.runs.folder import finished_run, refuse_target

    finished_run(run)
    refuse_target(run, target)
    for package in ONNX_PACKAGES if form == "onnx" else ():
        if find_spec(package) is None:
            raise missing_package(package, "onnx")
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
    left, merged = (", ".join(written.get(key, ())) or "nothing" for key in ("adapter", "merged"))
    if "opset" in written:
        lines = [
            f"ONNX opset {written['opset']}; merged {merged}; in the graph {left}",
            f"logits differ from torch's by at most {written['difference']:.1e}",
        ]
    else:
        rest = f"adapter of {left}" if written["adapter"] else "no adapter is left"
        lines = [f"merged {merged}; {rest}"]
    for line in (f"{target}: {lines[0]}", *lines[1:]):
        say(line)
    next_is(as_typed("cat", target / "README.md"))
