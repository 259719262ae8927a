"""The command ``explore``: what an adapter does to sentences, for a browser or a terminal."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lorada.cli.app import (
    Json,
    Remote,
    app,
    console,
    loaded_run,
    loading_model,
    print_json,
    say,
    suggest,
    waiting,
)
from lorada.cli.paper_commands import draw, figure_1
from lorada.support.errors import needs_extra, refuse_empty
from lorada.support.files import write_atomic


@app.command()
def explore(
    runs: Annotated[list[Path], typer.Argument(help="a finished run, or two to compare")],
    text: Annotated[list[str], typer.Option(help="a sentence to show; may be given again")],
    output: Annotated[Path, typer.Option(help="the page")] = Path("explore.html"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the page")] = False,
    maps: Annotated[
        bool,
        typer.Option(
            "--maps", help="instead, print what the map of each layer does to one sentence"
        ),
    ] = False,
    layer: Annotated[
        int | None, typer.Option(help="of --maps: the one to draw; else the last")
    ] = None,
    head: Annotated[
        int | None, typer.Option(help="of --maps: the one to draw; else the strongest map's")
    ] = None,
    remote: Remote = False,
    as_json: Json = False,
) -> None:
    """Show what an adapter does to sentences: as a page for a browser, or with --maps here."""
    if maps:
        _show_maps(runs, text, layer, head, remote=remote, as_json=as_json)
        return
    for option, given in {"--layer": layer, "--head": head, "--json": as_json or None}.items():
        if given is not None:
            raise ValueError(f"{option} is for --maps: add it, or leave {option} out")
    recipe = _checked(runs, text, output, overwrite=overwrite)
    with needs_extra("explore"):
        import jinja2  # noqa: F401
    with loading_model(recipe.model):
        from lorada.explore.explore import explored
        from lorada.inference.load import load_run

        loaded = [load_run(run, trust_remote_code=remote) for run in runs]
    data = explored(loaded, text)
    with waiting("writing the page"):
        from lorada.explore.explorer_page import explorer_page

        page = explorer_page(data)
    write_atomic(output, page)
    say(f"{output} ({len(page) / 2**20:.1f} MB)")
    from lorada.support.row_sources import HEADED

    if loaded[0].form in HEADED:
        suggest("predict", runs[0], "--text", text[0])
    else:
        suggest("chat", runs[0])


def _checked(runs: list[Path], texts: list[str], output: Path, *, overwrite: bool) -> Any:
    """The recipe of the first run, after a check of what is to be explored, before torch loads."""
    from lorada.runs.folder import finished_run, refuse_no_adapter
    from lorada.support.files import refuse_there

    if len(runs) > 2:
        raise ValueError(f"{len(runs)} runs do not fit side by side: give one or two")
    recipes = [finished_run(run) for run in runs]
    for run in runs:
        refuse_no_adapter(run, "explore another run")
    for text in texts:
        refuse_empty(text)
    refuse_there(output, overwrite=overwrite)
    return recipes[0]


def _show_maps(
    runs: list[Path], text: list[str], layer: int | None, head: int | None,
    *, remote: bool, as_json: bool,
) -> None:  # fmt: skip
    """Print the relative norm of every layer's map on a sentence, and draw one head as Figure 1."""
    from lorada.runs.folder import finished_run

    if len(runs) > 1 or len(text) > 1:
        raise ValueError("--maps shows one run and one --text: give one of each")
    run = runs[0]
    recipe = finished_run(run)
    refuse_empty(text[0])
    loaded = loaded_run(run, recipe.model, remote=remote, quiet=as_json)
    from lorada.explore.explore import sentence_maps

    found = sentence_maps(loaded, text[0], layer, head)
    if as_json:
        print_json(found)
        return
    shown = Table("layer", "relative norm", "map below 0", "fused below 0")
    for one in found["layers"]:
        shown.add_row(
            one["layer"], f"{one['relative_norm']:.4f}",
            f"{100 * one['map_negative_ratio']:.1f}%", f"{100 * one['negative_ratio']:.1f}%",
        )  # fmt: skip
    console.print(shown)
    draw("maps", run, lambda *paths: figure_1(found, *paths))
    suggest("plot", "3", run, *([] if recipe.scores_rows else ["--data", "FILE"]))
