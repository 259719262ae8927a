"""What the log and ``/metrics`` say of requests: never their texts."""

import logging
import time

from prometheus_client import Counter, Gauge, Histogram

logger = logging.getLogger(__name__)
CLOSED = 499  # nginx's number for a client that went away before its answer
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)  # seconds
MODEL = ("model",)

REQUESTS = Counter("lorada_requests", "Requests that have ended.", (*MODEL, "endpoint", "status"))
READ = Counter("lorada_prompt_tokens", "Tokens read.", MODEL)
WRITTEN = Counter("lorada_generated_tokens", "Tokens written.", MODEL)
RUNNING = Gauge("lorada_prompts_running", "Prompts that are answered or wait.")
FIRST_TOKEN = Histogram(
    "lorada_first_token_seconds", "From a request to its first token.", MODEL, buckets=BUCKETS
)
SECONDS = Histogram("lorada_request_seconds", "From a request to its end.", MODEL, buckets=BUCKETS)


class Record:
    """One request, from its arrival to its end."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint, self._start = endpoint, time.perf_counter()
        self.model, self.status = "", CLOSED  # until the name and the HTTP status are known
        self.prompts = 0  # that are answered or wait
        self.read = self.written = 0  # tokens of its prompts, and of its answers so far
        self._first: float | None = None

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.perf_counter() - self._start

    @property
    def usage(self) -> dict[str, int]:
        """The numbers of tokens, as OpenAI's API spells them."""
        both = {"prompt_tokens": self.read, "completion_tokens": self.written}
        return {**both, "total_tokens": self.read + self.written}

    def first_token(self) -> None:
        """Note the time, if it has not been noted before."""
        if self._first is None:
            self._first = self.seconds
            FIRST_TOKEN.labels(self.model).observe(self._first)

    def end(self) -> None:
        """Count the request, and write its line."""
        total = self.seconds
        RUNNING.dec(self.prompts)
        REQUESTS.labels(self.model, self._endpoint, str(self.status)).inc()
        SECONDS.labels(self.model).observe(total)
        READ.labels(self.model).inc(self.read)
        WRITTEN.labels(self.model).inc(self.written)
        first = "-" if self._first is None else f"{self._first:.3f}s"
        logger.info(
            "%d %s model=%s read=%d written=%d first=%s total=%.3fs",
            self.status, self._endpoint, self.model or "-", self.read, self.written, first, total,
        )  # fmt: skip
