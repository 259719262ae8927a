"""Answers many requests at once, with transformers' continuous batching."""

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncGenerator
from math import ceil
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from lorada.inference.serving.engine import Ask, EngineFailed, Progress
from lorada.inference.serving.shared_model import AdapterView

logger = logging.getLogger(__name__)

# On a processor: tokens in a page of the cache, and tokens that one forward pass reads at most.
PAGE, PASS = 32, 512
# On an accelerator: the share of its free memory for the caches of all names.
MEMORY = 0.7
# Any values but those that switch a rule off: a rule that is off cannot be set by a request.
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}


class Batched:
    """The requests to one name of the server.

    Greedy answers, greedy ones with log-probabilities, and sampled ones are three batches, because
    transformers chooses tokens by one rule in a batch. A batch is made when it is first asked for;
    each has a cache of ``cache_tokens`` keys and values.
    """

    has_logprobs = True

    def __init__(
        self, view: AdapterView, config: GenerationConfig, cache_tokens: int | None, share: float
    ) -> None:
        """Nothing is allocated yet.

        Args:
            view: the model.
            config: its generation settings.
            cache_tokens: size of a cache; None for what fits in ``share``.
            share: the part of an accelerator's free memory that one cache may take.
        """
        self.room = cache_tokens
        self._view, self._config, self._share = view, config, share
        self._workers: dict[tuple[bool, bool], _Worker] = {}
        self._making = threading.Lock()

    async def write(self, ask: Ask) -> AsyncGenerator[Progress]:
        """See ``Engine``."""
        worker = await asyncio.to_thread(self._worker, ask)
        options: dict[str, Any] = {}
        if ask.sampled:
            options = {"temperature": ask.temperature, "top_p": ask.top_p}
        name, outputs = worker.add(ask, options)
        done = False
        try:
            while not done:
                output = await outputs.get()
                while not outputs.empty():  # only the latest counts: it holds all tokens
                    output = outputs.get_nowait()
                if output is None or output.error is not None:
                    done = True
                    raise EngineFailed(output.error if output else "the batch ended")
                done = output.is_finished()
                yield Progress(output.generated_tokens, output.logprobs, done)
        finally:
            worker.remove(name, cancel=not done)

    def running(self) -> bool:
        """See ``Engine``: a batch that died is made anew by the next request."""
        return all(worker.manager.is_running() for worker in self._workers.values())

    def stop(self) -> None:
        """See ``Engine``."""
        for worker in self._workers.values():
            worker.manager.stop(block=True, timeout=10, hard_stop=True)

    def _worker(self, ask: Ask) -> "_Worker":
        kind = (ask.sampled, ask.logprobs)
        with self._making:
            worker = self._workers.get(kind)
            if worker is None or not worker.manager.is_running():
                worker = self._workers[kind] = _Worker(self._view, *self._settings(*kind))
            return worker

    def _settings(
        self, sampled: bool, logprobs: bool
    ) -> tuple[GenerationConfig, ContinuousBatchingConfig]:
        config = GenerationConfig.from_dict(self._config.to_dict())
        config.update(**(SAMPLING if sampled else {"do_sample": False}))
        size: dict[str, Any] = {"max_memory_percent": self._share}
        if self._view.device.type == "cpu":
            size = {"page_size": PAGE, "max_batch_tokens": PASS}
        if self.room is not None:
            page = size.get("page_size", ContinuousBatchingConfig.page_size)
            size["num_blocks"] = ceil(self.room / page) + 1
        return config, ContinuousBatchingConfig(
            **size,
            return_logprobs=logprobs,
            per_request_processors=sampled,
            auto_switch_to_flash=False,
        )


class _Worker:
    """One batch, and a thread that hands its results to whoever waits for them."""

    def __init__(
        self, view: AdapterView, config: GenerationConfig, batching: ContinuousBatchingConfig
    ) -> None:
        self.manager = view.init_continuous_batching(config, batching)
        self.manager.start()
        self._numbers = itertools.count()
        self._waiting: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Queue[Any]]] = {}
        threading.Thread(target=self._deliver, daemon=True).start()

    def add(self, ask: Ask, options: dict[str, Any]) -> tuple[str, "asyncio.Queue[Any]"]:
        """Put a request into the batch; its name there, and the queue that its results come to."""
        name, outputs = str(next(self._numbers)), asyncio.Queue[Any]()
        self._waiting[name] = (asyncio.get_running_loop(), outputs)
        taken = self.manager.add_request(
            ask.ids, request_id=name, max_new_tokens=ask.most, streaming=True, **options
        )
        if taken is None:
            outputs.put_nowait(None)
        return name, outputs

    def remove(self, name: str, *, cancel: bool) -> None:
        """Forget a request, and take it out of the batch if it has not ended."""
        self._waiting.pop(name, None)
        if cancel:
            self.manager.cancel_request(name)

    def _deliver(self) -> None:
        while self.manager.is_running():
            output = self.manager.get_result(timeout=0.2)
            if output is not None:
                self._hand(output.request_id, output)
        while (output := self.manager.get_result(timeout=0)) is not None:
            self._hand(output.request_id, output)
        for name in list(self._waiting):
            self._hand(name, None)

    def _hand(self, name: str, output: Any) -> None:
        loop, outputs = self._waiting.get(name, (None, None))
        if loop is not None and outputs is not None and not loop.is_closed():
            loop.call_soon_threadsafe(outputs.put_nowait, output)
