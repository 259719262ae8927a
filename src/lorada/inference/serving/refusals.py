"""Requests that get no answer: an HTTP status and one line, as OpenAI's API spells them."""

import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lorada.inference.serving.engine import EngineFailed

logger = logging.getLogger(__name__)
CLOSED = 499  # nginx's number for a client that went away before its answer
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}


class Refused(Exception):
    """A request that gets no answer."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        """The JSON of the refusal."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message, "type": kind, "param": self.param, "code": self.code
            }
        }  # fmt: skip


def refusal_of(error: BaseException) -> Refused:
    """The refusal that an error becomes; of a fault of our own only the log says more."""
    if isinstance(error, Refused):
        return error
    if not isinstance(error, Exception):  # the answer was cut off
        return Refused(CLOSED, "the client went away")
    if isinstance(error, HTTPException):
        return Refused(error.status_code, f"there is nothing here for this request: {error.detail}")
    if isinstance(error, EngineFailed):
        return Refused(503, "the model failed at this answer: try again", code="engine_failed")
    return Refused(500, "the server failed at this answer")


def log_fault(error: Exception) -> None:
    """Write a line on an error that is no refusal."""
    if not isinstance(error, Refused | HTTPException):
        logger.error("a request failed: %s", " ".join(str(error).split())[:500])


async def refuse(_: Request, error: Exception) -> Response:
    """The response to a request that ended in an error."""
    log_fault(error)
    refusal = refusal_of(error)
    headers = dict(getattr(error, "headers", None) or HEADERS.get(refusal.status, {}))
    return JSONResponse(refusal.body(), refusal.status, headers)


HANDLERS: dict[Any, Any] = dict.fromkeys((Refused, EngineFailed, HTTPException, Exception), refuse)
