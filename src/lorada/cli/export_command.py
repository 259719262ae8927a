"""The command ``lorada export``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorada.cli.app import (
    Json,
    Remote,
    RunFolder,
    app,
    console,
    importing,
    next_is,
    print_json,
    waiting,
)


@app.command()
def export(
    run: RunFolder,
    target: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="new folder for the model")
    ] = None,
    adapter_only: Annotated[
        bool,
        typer.Option(
            "--adapter-only", help="write adapter and tokenizer only; the base stays where it is"
        ),
    ] = False,
    dtype: Annotated[
        str | None, typer.Option(help="of the weights: float32, bfloat16 or float16")
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(help="most bytes of a file of weights, such as 2GB")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="transformers, or onnx: a graph (an extra)")
    ] = "transformers",
    remote: Remote = False,
    as_json: Json = False,
) -> None:
    """Write a finished run as one model folder, with an adapter for what cannot be merged."""
    if target is None:
        raise ValueError(
            f"no folder to write to: lorada export {run} DIR writes the base with every part "
            "merged that can be, and the rest as an adapter beside it"
        )
    from lorada.cli.checks import check_export

    check_export(
        run, target, adapter_only=adapter_only, dtype=dtype, shard_size=shard_size, form=form
    )
    with importing(quiet=as_json):
        from transformers.utils import logging

        from lorada.inference import export as whole

    if form == "onnx":
        logging.disable_progress_bar()  # the spinner replaces it
        with waiting("tracing the model and comparing the graph with torch", quiet=as_json):
            written = whole.export_onnx(run, target, trust_remote_code=remote)
    elif adapter_only:
        written = whole.export_adapter(run, target, trust_remote_code=remote)
    else:
        written = whole.export(
            run, target, dtype=dtype, shard_size=shard_size, trust_remote_code=remote
        )
    if as_json:
        print_json(written)
    else:
        _tell(target, written)


def _tell(target: Path, written: dict[str, Any]) -> None:
    """Print what was written into a folder, how a graph compares with torch, and what is next."""
    left, merged = (", ".join(written.get(key, ())) or "nothing" for key in ("adapter", "merged"))
    if "base" in written:
        lines = [f"adapter of {left}, for {written['base']}"]
    elif "opset" in written:
        lines = [
            f"ONNX opset {written['opset']}; merged {merged}; in the graph {left}",
            f"logits differ from torch's by at most {written['difference']:.1e}",
        ]
    else:
        lines = [f"merged {merged}; adapter of {left}"]
    if written["license"] is None:
        card = target / "README.md"
        lines += [f"the licence of the base was not found: add it to {card} before you share it"]
    for line in (f"{target}: {lines[0]}", *lines[1:]):
        console.print(line, highlight=False, soft_wrap=True)
    next_is("cat", target / "README.md")
