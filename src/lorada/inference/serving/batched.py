"""Answers many requests at once, with transformers' continuous batching."""

import itertools
from collections.abc import Callable
from math import ceil
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from lorada.inference.serving.engine import Ask, EngineFailed, Progress, Tell
from lorada.inference.serving.shared_model import AdapterView

# On a processor: tokens in a page of the cache, and tokens that one forward pass reads at most.
PAGE, PASS = 32, 512
# On an accelerator: the share of its free memory for the caches of all names.
MEMORY = 0.7
# Any values but those that switch a rule off: a rule that is off cannot be set by a request.
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}


class Batched:
    """The requests to one name of the server.

    Greedy answers and drawn ones are two batches, because transformers chooses tokens by one rule
    in a batch. A batch is made when it is first asked for; each has a cache of its own.
    """

    has_logprobs = True

    def __init__(
        self, view: AdapterView, config: GenerationConfig, cache_tokens: int | None, share: float
    ) -> None:
        """Nothing is allocated yet.

        Args:
            view: the model.
            config: its generation settings.
            cache_tokens: keys and values that a cache holds; None for what fits in ``share``.
            share: the part of an accelerator's free memory that one cache may take.
        """
        self.room = cache_tokens
        self._view, self._config, self._share = view, config, share
        self._batches: dict[bool, Any] = {}  # transformers' managers, by whether they draw
        self._numbers = itertools.count()

    def begin(self, ask: Ask, tell: Tell) -> Callable[[], None]:
        """Begin an answer, and return what ends it, which must be called in any case."""
        batch, name, done = self._batch(drawn=ask.sampled), str(next(self._numbers)), False

        def take(output: Any) -> None:
            nonlocal done
            done = output.is_finished()
            if output.error is not None:
                tell(EngineFailed(output.error))
            else:
                tell(Progress(output.generated_tokens, output.logprobs, done))

        def end() -> None:
            if not done:
                batch.cancel_request(name)
            batch.output_router.result_handlers.pop(name, None)
            while batch.get_result(timeout=0):  # what came of answers that had been ended
                pass

        batch.register_result_handler(name, take)
        rule = {"temperature": ask.temperature, "top_p": ask.top_p} if ask.sampled else {}
        added = batch.add_request(
            ask.ids, request_id=name, max_new_tokens=ask.most, streaming=True, **rule
        )
        if added is None:
            tell(EngineFailed("the batch ended"))
        return end

    def running(self) -> bool:
        """Whether it can answer now: a batch that died is made anew by the next request."""
        return all(batch.is_running() for batch in self._batches.values())

    def stop(self) -> None:
        """End it; answers that are being written fail."""
        for batch in self._batches.values():
            batch.stop(block=True, timeout=10, hard_stop=True)

    def _batch(self, *, drawn: bool) -> Any:
        if drawn not in self._batches or not self._batches[drawn].is_running():
            config = GenerationConfig.from_dict(self._config.to_dict())
            config.update(**(SAMPLING if drawn else {"do_sample": False}))
            batching = ContinuousBatchingConfig(
                return_logprobs=True, per_request_processors=drawn, auto_switch_to_flash=False,
                **self._size(),
            )  # fmt: skip
            self._batches[drawn] = self._view.init_continuous_batching(config, batching)
            self._batches[drawn].start()
        return self._batches[drawn]

    def _size(self) -> dict[str, Any]:
        """The settings for the size of a cache."""
        size: dict[str, Any] = {"max_memory_percent": self._share}
        if self._view.device.type == "cpu":
            size = {"page_size": PAGE, "max_batch_tokens": PASS}
        if self.room is not None:
            page = size.get("page_size", ContinuousBatchingConfig.page_size)
            size["num_blocks"] = ceil(self.room / page) + 1
        return size
