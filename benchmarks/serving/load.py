"""Asks an OpenAI-compatible server for many completions at once, and times them."""

import http.client
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Load:
    """What is asked.

    Attributes:
        requests: how many.
        connections: how many at one time.
        read: fewest and most tokens of a prompt.
        write: fewest and most tokens of an answer; every answer has as many as it may.
        tokens: token ids that prompts are drawn from, as first and last.
    """

    requests: int = 64
    connections: int = 16
    read: tuple[int, int] = (16, 256)
    write: tuple[int, int] = (16, 64)
    tokens: tuple[int, int] = (1000, 20000)

    def bodies(self, model: str, seed: int = 0) -> list[dict]:
        """The requests, which are the same for each model and server."""
        draw = random.Random(seed)
        return [
            {
                "model": model, "stream": True, "temperature": 0,
                "prompt": [draw.randint(*self.tokens) for _ in range(draw.randint(*self.read))],
                "max_tokens": draw.randint(*self.write),
                "stream_options": {"include_usage": True},
            }
            for _ in range(self.requests)
        ]  # fmt: skip


@dataclass(frozen=True)
class Timed:
    """One request: seconds to its first token and to its end, and tokens that were written."""

    first: float
    total: float
    written: int


def measure(url: str, model: str, load: Load) -> dict[str, float]:
    """Requests and tokens in a second, and seconds to the first token."""
    bodies = load.bodies(model)
    start = time.perf_counter()
    with ThreadPoolExecutor(load.connections) as pool:
        timed = list(pool.map(lambda body: ask(url, body), bodies))
    seconds = time.perf_counter() - start
    firsts = sorted(one.first for one in timed)
    return {
        "requests_per_second": load.requests / seconds,
        "tokens_per_second": sum(one.written for one in timed) / seconds,
        "first_token_p50": median(firsts),
        "first_token_p99": firsts[min(len(firsts) - 1, round(0.99 * len(firsts)))],
    }


def ask(url: str, body: dict) -> Timed:
    """Ask for one streamed answer.

    Raises:
        RuntimeError: if the server refuses.
    """
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=600)
    start = time.perf_counter()
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{url} said {answer.status}: {answer.read(300)!r}")
    first, written = 0.0, 0
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line.removeprefix(b"data: "))
        if "error" in event:
            raise RuntimeError(f"{url} said {event['error']}")
        if not first and any(choice.get("text") for choice in event["choices"]):
            first = time.perf_counter() - start
        if event.get("usage"):
            written = event["usage"]["completion_tokens"]
    connection.close()
    total = time.perf_counter() - start
    return Timed(first or total, total, written)
