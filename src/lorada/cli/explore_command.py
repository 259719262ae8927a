"""The command ``explore``: what an adapter does to sentences, as a page for a browser."""

from pathlib import Path
from typing import Annotated

import typer

from lorada.cli.app import Remote, RunFolder, app, loading_model, say, suggest, waiting
from lorada.cli.queue_options import Overwrite
from lorada.support.errors import needs_extra
from lorada.support.files import refuse_there, write_atomic
from lorada.support.row_sources import HEADED


@app.command()
def explore(
    run: RunFolder,
    text: Annotated[list[str], typer.Option(help="a sentence to show; may be given again")],
    output: Annotated[Path, typer.Option(help="the page")] = Path("explore.html"),
    overwrite: Overwrite = False,
    remote: Remote = False,
) -> None:
    """Show what an adapter does to sentences."""
    from lorada.runs.folder import finished_run, refuse_no_adapter

    recipe = finished_run(run)
    refuse_no_adapter(run)
    refuse_there(output, overwrite=overwrite)
    with needs_extra("explore"):
        import jinja2  # noqa: F401
    with loading_model(recipe.model):
        from lorada.explore.explore import explored
        from lorada.explore.explorer_page import explorer_page
        from lorada.inference.load import load_run

        loaded = load_run(run, trust_remote_code=remote)
    data = explored(loaded, text)
    with waiting("writing the page"):
        page = explorer_page(data)
        write_atomic(output, page)
    say(f"{output} ({len(page) / 2**20:.1f} MB)")
    if loaded.form in HEADED:
        suggest("predict", run, "--text", text[0])
    else:
        suggest("chat", run)
