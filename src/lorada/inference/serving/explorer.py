"""``lorada explore --serve``: the explorer's page with a box for the reader's own sentence."""

import threading
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from lorada.inference.explore import explored
from lorada.inference.load import Run
from lorada.report.explorer.page import explorer_page

LONGEST = 10_000  # characters of a sentence


class Explorer:
    """Explores the sentences that it is asked for, one after the other."""

    def __init__(self, runs: Sequence[Run], texts: Sequence[str], *, steps: bool) -> None:
        self._runs, self._texts, self._steps = runs, texts, steps
        self._one_at_a_time = threading.Lock()  # all share the models

    def app(self) -> Starlette:
        """The application, for an ASGI server to run."""
        return Starlette(routes=[Route("/", self._show)])

    async def _show(self, request: Request) -> Response:
        """The page of the sentence ``text``, or of the usual ones."""
        text = request.query_params.get("text")
        if text is not None and len(text) > LONGEST:
            return PlainTextResponse(f"a sentence has at most {LONGEST} characters", 413)
        texts = self._texts if text is None else [text]
        try:
            page = await run_in_threadpool(self._page, texts)
        except ValueError as error:
            return PlainTextResponse(" ".join(str(error).split()), 400)
        return HTMLResponse(page)

    def _page(self, texts: Sequence[str]) -> str:
        with self._one_at_a_time:
            data = explored(self._runs, texts, steps=self._steps)
        return explorer_page(data, asked=texts[0])
