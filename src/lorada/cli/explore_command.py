"""The command ``explore``: a page that shows what an adapter does, for a browser."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorada.cli.app import Remote, app, console, errors, loading_model, suggest, waiting
from lorada.support.errors import needs_extra
from lorada.support.files import write_atomic

PATIENCE = 5.0  # seconds that a page which is being made has when the server ends


@app.command()
def explore(
    runs: Annotated[list[Path], typer.Argument(help="a finished run, or two to compare")],
    text: Annotated[list[str], typer.Option(help="a sentence to show; may be given again")],
    output: Annotated[Path, typer.Option(help="the page")] = Path("explore.html"),
    steps: Annotated[bool, typer.Option(help="show the checkpoints of the training too")] = True,
    overwrite: Annotated[bool, typer.Option(help="replace the page")] = False,
    serve: Annotated[
        bool, typer.Option(help="show it at 127.0.0.1, with a box for your own sentence")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="of --serve; 0: any")] = 8001,
    remote: Remote = False,
) -> None:
    """Write a page for a browser, without a network: what an adapter does to a sentence."""
    from lorada.cli.checks import check_explored

    recipe = check_explored(runs, text, output, overwrite=overwrite or serve)
    with needs_extra("explore"):
        import jinja2  # noqa: F401
    socket = _listen(port) if serve else None
    with loading_model(recipe.model):
        from lorada.inference.explore import explored, load_runs

        loaded = load_runs(runs, trust_remote_code=remote)
    if socket is not None:
        _serve(loaded, text, socket, steps=steps)
        return
    data = explored(loaded, text, steps=steps)
    with waiting("writing the page"):
        from lorada.report.explorer.page import explorer_page

        page = explorer_page(data)
    write_atomic(output, page)
    console.print(f"{output} ({len(page) / 2**20:.1f} MB)", highlight=False, soft_wrap=True)
    from lorada.tasks.rows import HEADED

    if loaded[0].form in HEADED:
        suggest("predict", runs[0], "--text", text[0])
    else:
        suggest("chat", runs[0])


def _listen(port: int) -> Any:
    """A socket of this machine alone, before a model is loaded."""
    with needs_extra("serve"):
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    from lorada.inference.serving.server import listen

    return listen("127.0.0.1", port)


def _serve(runs: Any, texts: list[str], socket: Any, *, steps: bool) -> None:
    from lorada.inference.serving.explorer import explorer_app
    from lorada.inference.serving.server import address_of, serve_until_stopped

    errors.print(f"open {address_of(socket)} in a browser; Ctrl-C ends it", highlight=False)
    serve_until_stopped(explorer_app(runs, texts, steps=steps), socket, PATIENCE)
