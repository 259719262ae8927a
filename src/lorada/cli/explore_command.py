"""The command ``explore``: what an adapter does to sentences, as a page for a browser."""

from pathlib import Path
from typing import Annotated

import typer

from lorada.cli.app import Remote, app, loading_model, say, suggest, waiting
from lorada.cli.queue_options import Overwrite
from lorada.support.errors import needs_extra
from lorada.support.files import refuse_there, write_atomic
from lorada.support.row_sources import HEADED


@app.command()
def explore(
    runs: Annotated[list[Path], typer.Argument(help="a finished run, or two to compare")],
    text: Annotated[list[str], typer.Option(help="a sentence to show; may be given again")],
    output: Annotated[Path, typer.Option(help="the page")] = Path("explore.html"),
    overwrite: Overwrite = False,
    remote: Remote = False,
) -> None:
    """Show what an adapter does to sentences."""
    from lorada.runs.folder import finished_run, refuse_no_adapter

    if len(runs) > 2:
        raise ValueError(f"{len(runs)} runs do not fit side by side: give one or two")
    recipes = [finished_run(run) for run in runs]
    for run in runs:
        refuse_no_adapter(run, "explore another run")
    refuse_there(output, overwrite=overwrite)
    with needs_extra("explore"):
        import jinja2  # noqa: F401
    with loading_model(recipes[0].model):
        from lorada.explore.explore import explored
        from lorada.explore.explorer_page import explorer_page
        from lorada.inference.load import load_run

        loaded = [load_run(run, trust_remote_code=remote) for run in runs]
    data = explored(loaded, text)
    with waiting("writing the page"):
        page = explorer_page(data)
        write_atomic(output, page)
    say(f"{output} ({len(page) / 2**20:.1f} MB)")
    if loaded[0].form in HEADED:
        suggest("predict", runs[0], "--text", text[0])
    else:
        suggest("chat", runs[0])
