"""The command ``serve``: finished runs behind an OpenAI-compatible HTTP server."""

from pathlib import Path
from typing import Annotated

import typer

from lorada.cli.app import Remote, app, errors, loading_model, next_is, note
from lorada.support.errors import needs_extra
from lorada.support.files import as_typed
from lorada.support.progress import only_reports

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@app.command()
def serve(
    runs: Annotated[list[Path], typer.Argument(help="folders of finished runs on one base")],
    host: Annotated[str, typer.Option(help="address to listen at")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="LORADA_API_KEY", help="what each request must bring"),
    ] = None,
    remote: Remote = False,
) -> None:
    """Serve runs and their base to OpenAI's clients; classes, scores, choices at /v1/classify."""
    from lorada.runs.folder import to_serve

    with needs_extra("serve"):
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    from lorada.inference.serving.server import address_of, listen, serve_until_stopped

    recipe, asked = to_serve(runs)
    if api_key is not None and not (api_key and all("!" <= sign <= "~" for sign in api_key)):
        raise ValueError(
            "--api-key is empty, or has a blank or a sign that is not ASCII: pass another, or none "
            "to ask for no key"
        )
    socket = listen(host, port)
    with loading_model(recipe.model):
        from lorada.inference.serving.api import Server
        from lorada.inference.serving.served import open_classifiers, open_served

        classifiers = open_classifiers(runs, trust_remote_code=remote) if asked else {}
        served = {} if asked else open_served(runs, trust_remote_code=remote)
    if host not in LOOPBACK and not api_key:
        note(f"anybody who reaches {host} may ask: --api-key KEY asks them for a key")
    address = address_of(socket)
    for name, one in served.items():
        note(f"{name}: {one.run.recipe.method if one.run.key else 'the base alone'}")
    for name, classifier in classifiers.items():
        note(f"{name}: {classifier.run.recipe.method}, {classifier.does} at /v1/classify")
    note(f"listening at {address}; Ctrl-C or SIGTERM ends it when running requests have ended")
    next_is(as_typed("curl", f"{address}/v1/models"), errors)
    with only_reports():  # no progress bar for each request
        serve_until_stopped(Server(served, classifiers, key=api_key).app(), socket)
