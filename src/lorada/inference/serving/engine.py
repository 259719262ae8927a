"""What every engine of the server does: it writes tokens for one request, as they come."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

# Colder requests take the likeliest token: scores over a smaller number may be infinite in fp32,
# and what is not a number ends a batch for all its requests.
COLDEST = 1e-6


@dataclass(frozen=True)
class Ask:
    """What one answer is to be.

    Attributes:
        ids: the prompt's tokens.
        most: how many tokens may be written.
        temperature: below ``COLDEST`` for the likeliest token each time.
        top_p: when sampling, the share of probability that tokens are drawn from.
        logprobs: whether the log-probability of each token is wanted.
    """

    ids: list[int]
    most: int
    temperature: float = 0.0
    top_p: float = 1.0
    logprobs: bool = False

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn, else the likeliest is taken."""
        return self.temperature >= COLDEST


@dataclass(frozen=True)
class Progress:
    """The tokens written so far, with their log-probabilities if those were asked for."""

    ids: list[int]
    logprobs: list[float]
    done: bool


class EngineFailed(RuntimeError):
    """An engine could not finish a request; the next one may succeed."""


class Engine(Protocol):
    """Writes tokens for the requests to one name of the server."""

    has_logprobs: bool
    room: int | None
    """Most tokens of a prompt and its answer together; None for any number."""

    def write(self, ask: Ask) -> AsyncGenerator[Progress]:
        """The progress of one answer after each token or more; closing it ends the answer.

        Raises:
            EngineFailed: if the answer could not be finished.
        """

    def running(self) -> bool:
        """Whether it could take a request now."""

    def stop(self) -> None:
        """End it; answers that are being written fail."""
