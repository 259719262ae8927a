"""What the server takes at most, and who may ask."""

import hmac
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from lorada.inference.serving.refusals import CLOSED, Refused


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        body: bytes of a request.
        tokens: of an answer; None for what the model has room for.
        requests: prompts that are answered or wait at one time.
        seconds: from a request until its end.
    """

    body: int = 2**20
    tokens: int | None = None
    requests: int = 256
    seconds: float = 600.0

    def __post_init__(self) -> None:
        """Check the time.

        Raises:
            ValueError: for a time without end.
        """
        if not math.isfinite(self.seconds):
            raise ValueError(f"--timeout {self.seconds} has no end: pass seconds, such as 600")


class Places:
    """Counts the prompts that are being answered or wait."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Take places for some prompts in a ``with`` block.

        Raises:
            Refused: if there are not so many.
        """
        if count > self.most:
            raise Refused(400, f"{count} prompts are more than this server takes, {self.most}")
        if self.taken + count > self.most:
            raise Refused(
                429, f"{self.taken} prompts wait or are answered, of {self.most}: try again later",
                code="rate_limit_exceeded",
            )  # fmt: skip
        self.taken += count
        try:
            yield
        finally:
            self.taken -= count


def refuse_key(key: str) -> None:
    """Refuse a key that no client can send, or an empty one, which an unset variable gives.

    Raises:
        ValueError: without the key, which is a secret.
    """
    if not key or not all("!" <= sign <= "~" for sign in key):
        raise ValueError(
            "--api-key is empty, or has a blank or a sign that is not ASCII: pass another, or none "
            "to ask for no key"
        )


def check_key(request: Request, key: str | None) -> None:
    """Refuse a request without the key of the server.

    Raises:
        Refused: for no key, or another one.
    """
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip(" ").encode("utf-8", "replace"), key.encode())
    if scheme.lower() != "bearer" or not same:
        raise Refused(
            401, "no valid API key: send Authorization: Bearer KEY", code="invalid_api_key"
        )


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        Refused: for a longer one than ``most`` bytes, or a client that leaves before its end.
    """
    too_long = Refused(413, f"the request is longer than {most} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_long
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:  # of a body in chunks the client says no length
                raise too_long
            parts.append(part)
    except ClientDisconnect:
        raise Refused(CLOSED, "the client went away") from None
    return b"".join(parts)
