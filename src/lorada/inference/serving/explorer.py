"""``lorada explore --serve``: the explorer's page with a box for the reader's own sentence."""

import threading
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from lorada.inference.explore import explored
from lorada.inference.load import Run
from lorada.report.explorer.page import explorer_page

LONGEST = 10_000  # characters of a sentence


def explorer_app(runs: Sequence[Run], texts: Sequence[str], *, steps: bool) -> Starlette:
    """The application: the page of the sentence ``text`` of the address, or of the usual ones."""
    one_at_a_time = threading.Lock()  # all share the models

    def show(request: Request) -> Response:
        text = request.query_params.get("text")
        if text is not None and len(text) > LONGEST:
            return PlainTextResponse(f"a sentence has at most {LONGEST} characters", 413)
        asked = texts if text is None else [text]
        try:
            with one_at_a_time:
                data = explored(runs, asked, steps=steps)
        except ValueError as error:
            return PlainTextResponse(" ".join(str(error).split()), 400)
        return HTMLResponse(explorer_page(data, asked=asked[0]))

    return Starlette(routes=[Route("/", show)])
