"""The command ``explore``: a page that shows what an adapter does, for a browser."""

from pathlib import Path
from typing import Annotated

import typer

from lorada.cli.app import Remote, app, console, loading_model, suggest, waiting
from lorada.support.errors import needs_extra
from lorada.support.files import write_atomic


@app.command()
def explore(
    runs: Annotated[list[Path], typer.Argument(help="a finished run, or two to compare")],
    text: Annotated[list[str], typer.Option(help="a sentence to show; may be given again")],
    output: Annotated[Path, typer.Option(help="the page")] = Path("explore.html"),
    steps: Annotated[bool, typer.Option(help="show the checkpoints of the training too")] = True,
    overwrite: Annotated[bool, typer.Option(help="replace the page")] = False,
    remote: Remote = False,
) -> None:
    """Write a page for a browser, without a network: what an adapter does to a sentence."""
    from lorada.cli.checks import check_explored

    recipe = check_explored(runs, text, output, overwrite=overwrite)
    with needs_extra("explore"):
        import jinja2  # noqa: F401
    with loading_model(recipe.model):
        from lorada.runs.inference.explore import explored, load_runs

        loaded = load_runs(runs, trust_remote_code=remote)
    data = explored(loaded, text, steps=steps)
    with waiting("writing the page"):
        from lorada.report.explorer.page import explorer_page

        page = explorer_page(data)
    write_atomic(output, page)
    console.print(f"{output} ({len(page) / 2**20:.1f} MB)", highlight=False, soft_wrap=True)
    suggest("chat", runs[0])
