"""Requests that get no answer: an HTTP status and one line, as OpenAI's API spells them."""

import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from lorada.inference.serving.records import CLOSED

logger = logging.getLogger(__name__)


class Refused(HTTPException):
    """A request that gets no answer."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    def body(self) -> dict[str, Any]:
        """The JSON of the refusal."""
        kind = "invalid_request_error" if self.status_code < 500 else "server_error"
        return {
            "error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}
        }

    def response(self) -> Response:
        """The whole answer to the request."""
        return JSONResponse(self.body(), self.status_code, self.headers)


class EngineFailed(RuntimeError):
    """An engine could not finish an answer; the next one may succeed."""


def refusal_of(error: Exception) -> Refused:
    """The refusal that an error becomes; of a fault of our own only the log says more."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):  # Starlette's, for addresses and methods
        said = f"there is nothing here for this request: {error.detail}"
        return Refused(error.status_code, said, headers=error.headers)
    if isinstance(error, ClientDisconnect):
        return Refused(CLOSED, "the client went away")
    if isinstance(error, TimeoutError):
        return Refused(504, "the time that this server gives a request is over", code="timeout")
    failed = isinstance(error, EngineFailed)
    said = " ".join(str(error).split())[:500]
    logger.error("a request failed: %s", said, exc_info=None if failed else error)
    if failed:
        return Refused(503, "the model failed at this answer: try again", code="engine_failed")
    return Refused(500, "the server failed at this answer")


async def refuse(_: Request, error: Exception) -> Response:
    """The response to a request that ended in an error."""
    return refusal_of(error).response()
