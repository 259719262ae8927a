"""What the log and ``/metrics`` say of requests: never their texts."""

import logging
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

logger = logging.getLogger(__name__)
CLOSED = 499  # nginx's number for a client that went away before its answer
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts requests, tokens and times, by the name that answers, for Prometheus to read."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        name = ("model",)
        self.requests = Counter(
            "lorada_requests", "Requests that have ended.", (*name, "endpoint", "status"),
            registry=own,
        )  # fmt: skip
        self.read = Counter("lorada_prompt_tokens", "Tokens read.", name, registry=own)
        self.written = Counter("lorada_generated_tokens", "Tokens written.", name, registry=own)
        self.running = Gauge(
            "lorada_prompts_running", "Prompts that are answered or wait.", registry=own
        )
        times: dict[str, Any] = {"labelnames": name, "buckets": SECONDS, "registry": own}
        self.first_token = Histogram(
            "lorada_first_token_seconds", "From a request to its first token.", **times
        )
        self.seconds = Histogram("lorada_request_seconds", "From a request to its end.", **times)


class Record:
    """One request, from its arrival to its end.

    Attributes:
        model: the name that answers; empty as long as it is not known.
        status: the HTTP status; until there is one, that of a client that went away.
        prompts: how many it has that are answered or wait.
        read: tokens of its prompts.
        written: tokens of its answers so far.
    """

    def __init__(self, metrics: Metrics, endpoint: str) -> None:
        self._metrics, self._endpoint, self._start = metrics, endpoint, time.perf_counter()
        self.model, self.status = "", CLOSED
        self.prompts = self.read = self.written = 0
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
        metrics, total = self._metrics, self.seconds
        metrics.requests.labels(self.model, self._endpoint, str(self.status)).inc()
        metrics.seconds.labels(self.model).observe(total)
        if self.model:
            metrics.read.labels(self.model).inc(self.read)
            metrics.written.labels(self.model).inc(self.written)
        first = "-" if self._first is None else f"{self._first:.3f}s"
        logger.info(
            "%d %s model=%s read=%d written=%d first=%s total=%.3fs",
            self.status, self._endpoint, self.model or "-", self.read, self.written, first, total,
        )  # fmt: skip
