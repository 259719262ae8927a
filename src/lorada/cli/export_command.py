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
    suggest,
    waiting,
)


@app.command()
def export(
    run: RunFolder,
    target: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="new folder for the model")
    ] = None,
    adapter_only: Annotated[
        bool, typer.Option(help="write adapter and tokenizer only; the base stays where it is")
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
    merge: Annotated[Path | None, typer.Option(hidden=True, help="DIR, as it was given")] = None,
    remote: Remote = False,
    as_json: Json = False,
) -> None:
    """Write a finished run as one model folder, with an adapter for what cannot be merged."""
    if target is not None and merge is not None:
        raise ValueError(f"two folders to write to: leave out --merge {merge}")
    target = target or merge
    if target is None:
        raise ValueError(
            f"no folder to write to: lorada export {run} DIR writes the base with every part "
            "merged that can be, and the rest as an adapter beside it"
        )
    from lorada.cli.checks import check_export

    check_export(
        run, target, adapter_only=adapter_only, dtype=dtype, shard_size=shard_size, form=form
    )
    if form != "transformers":
        export_as_graph(run, target, remote=remote, as_json=as_json)
        return
    with importing(quiet=as_json):
        from lorada.inference.export import export as export_model
        from lorada.inference.export import export_adapter

    if adapter_only:
        written = export_adapter(run, target, trust_remote_code=remote)
    else:
        written = export_model(
            run, target, dtype=dtype, shard_size=shard_size, trust_remote_code=remote
        )
    if as_json:
        print_json(written)
    else:
        say_written(target, written, adapter_only=adapter_only)


def say_written(target: Path, written: dict[str, Any], *, adapter_only: bool) -> None:
    """Print what was written into a folder, and what to do with it."""
    left = ", ".join(written["adapter"]) or "nothing"
    if adapter_only:
        text = f"adapter of {left}, for {written['base']}"
    else:
        text = f"merged {', '.join(written['merged']) or 'nothing'}; adapter of {left}"
    console.print(f"{target}: {text}", highlight=False, soft_wrap=True)
    say_licence(written["license"])
    if written["labels"] or adapter_only:
        next_is("cat", target / "README.md")
        return
    model = f"pretrained={target}"
    suggest("run", "lm_eval", "--model", "hf", "--model_args", model, "--tasks", "TASKS")


def export_as_graph(run: Path, target: Path, *, remote: bool, as_json: bool) -> None:
    """Write a finished run as a graph, and print how its numbers compare with torch's."""
    with importing(quiet=as_json):
        from transformers.utils import logging

        from lorada.inference.graph_export import export_graph
    logging.disable_progress_bar()  # the spinner replaces it
    with waiting("tracing the model and comparing the graph with torch", quiet=as_json):
        written = export_graph(run, target, trust_remote_code=remote)
    if as_json:
        print_json(written)
        return
    merged, inside = (", ".join(written[key]) or "nothing" for key in ("merged", "adapter"))
    text = f"{target}: ONNX opset {written['opset']}; merged {merged}; in the graph {inside}"
    console.print(text, highlight=False, soft_wrap=True)
    effect = written["effect"]
    changes = "" if effect is None else f"; the adapter changes them by up to {effect:.3g}"
    text = f"logits differ from torch's by at most {written['difference']:.1e}{changes}"
    console.print(text, highlight=False, soft_wrap=True)
    say_licence(written["license"])
    next_is("cat", target / "README.md")


def say_licence(licence: object) -> None:
    """Say so if the licence of a base was not found."""
    if licence is None:
        text = "the licence of the base was not found: add it to README.md before you share DIR"
        console.print(text, highlight=False, soft_wrap=True)
