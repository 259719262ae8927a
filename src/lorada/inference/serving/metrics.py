"""The server's numbers, as Prometheus reads them at ``/metrics``."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts requests, tokens and times, by the name that answers."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        name = ("model",)
        self._requests = Counter(
            "lorada_requests", "Requests that have ended.", ("model", "endpoint", "status"),
            registry=own,
        )  # fmt: skip
        self.prompt_tokens = Counter("lorada_prompt_tokens", "Tokens read.", name, registry=own)
        self.generated_tokens = Counter(
            "lorada_generated_tokens", "Tokens written.", name, registry=own
        )
        self._running = Gauge(
            "lorada_prompts_running", "Prompts that are answered or wait.", registry=own
        )
        self.first_token = Histogram(
            "lorada_first_token_seconds", "From a request to its first token.", name,
            buckets=SECONDS, registry=own,
        )  # fmt: skip
        self._seconds = Histogram(
            "lorada_request_seconds", "From a request to its end.", name, buckets=SECONDS,
            registry=own,
        )  # fmt: skip

    def watch(self, running: Callable[[], float]) -> None:
        """Ask ``running`` for the number of prompts whenever the numbers are read."""
        self._running.set_function(running)

    def ended(self, model: str, endpoint: str, status: int, seconds: float) -> None:
        """Count one request; ``model`` is a name of the server, or empty."""
        self._requests.labels(model, endpoint, str(status)).inc()
        self._seconds.labels(model).observe(seconds)

    def text(self) -> bytes:
        """All numbers, in Prometheus' text form."""
        return generate_latest(self._registry)
