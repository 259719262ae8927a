"""What is asked of the server's engines, which write the tokens of answers, and what they tell."""

from collections.abc import Callable
from dataclasses import dataclass

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
    """The tokens written so far, with their log-probabilities if the engine has them."""

    ids: list[int]
    logprobs: list[float]
    done: bool


class EngineFailed(RuntimeError):
    """An engine could not finish an answer; the next one may succeed."""


# An engine calls it in the event loop, after each token or more of an answer.
Tell = Callable[[Progress | EngineFailed], object]
