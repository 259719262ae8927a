"""What the log and the metrics say of one request: never its text."""

import logging
import time

from lorada.inference.serving.metrics import Metrics

logger = logging.getLogger(__name__)


class Record:
    """One request, from its arrival to its end.

    Attributes:
        model: the name that answers; empty as long as it is not known.
        status: the HTTP status.
        read: tokens of its prompts.
        written: tokens of its answers so far.
    """

    def __init__(self, metrics: Metrics, endpoint: str) -> None:
        self._metrics, self._endpoint, self._start = metrics, endpoint, time.perf_counter()
        self.model, self.status, self.read, self.written = "", 200, 0, 0
        self._first: float | None = None

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.perf_counter() - self._start

    def first_token(self) -> None:
        """Note the time, if it has not been noted before."""
        if self._first is None:
            self._first = self.seconds
            self._metrics.first_token.labels(self.model).observe(self._first)

    def end(self) -> None:
        """Count the request, and write its line."""
        self._metrics.ended(self.model, self._endpoint, self.status, self.seconds)
        if self.model:
            self._metrics.prompt_tokens.labels(self.model).inc(self.read)
            self._metrics.generated_tokens.labels(self.model).inc(self.written)
        first = "-" if self._first is None else f"{self._first:.3f}s"
        logger.info(
            "%d %s model=%s read=%d written=%d first=%s total=%.3fs",
            self.status, self._endpoint, self.model or "-", self.read, self.written, first,
            self.seconds,
        )  # fmt: skip
