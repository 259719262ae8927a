"""Two engines that write the tokens of answers: many at once, or one after the other."""

import asyncio
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation import StoppingCriteriaList

from lorada.inference.generate import continue_batch, padded
from lorada.inference.load import Run
from lorada.inference.serving.shared_model import AdapterView, SharedModel
from lorada.inference.stream import Stop, TokenStreamer

# Colder requests take the likeliest token: scores over a smaller number may be infinite in fp32,
# and what is not a number ends a batch for all its requests.
COLDEST = 1e-6
# On a processor: tokens in a page of the cache, and tokens that one forward pass reads at most.
PAGE, PASS = 32, 512
# On an accelerator: the share of its free memory for the caches of all names.
MEMORY = 0.7
# Any values but those that switch a rule off: a rule that is off cannot be set by a request.
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}


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
    def rule(self) -> dict[str, float]:
        """How tokens are drawn; empty if the likeliest is taken."""
        if self.temperature < COLDEST:
            return {}
        return {"temperature": self.temperature, "top_p": self.top_p}


class Progress(NamedTuple):
    """The tokens written so far, with their log-probabilities if the engine has them.

    ``failed`` says why an answer cannot be finished.
    """

    ids: list[int]
    logprobs: list[float]
    done: bool = False
    failed: str | None = None


# An engine calls it in the event loop, after each token or more of an answer.
Tell = Callable[[Progress], object]


class Batched:
    """The requests to one name of the server, with transformers' continuous batching.

    Greedy answers and drawn ones are two batches, because transformers chooses tokens by one rule
    in a batch. A batch is made when it is first asked for; each has a cache of its own.
    """

    has_logprobs = True

    def __init__(
        self, view: AdapterView, settings: dict[str, Any], cache_tokens: int | None, share: float
    ) -> None:
        """Nothing is allocated yet.

        Args:
            view: the model.
            settings: of ``generate``; others are the model's own.
            cache_tokens: keys and values that a cache holds; None for what fits in ``share``.
            share: the part of an accelerator's free memory that one cache may take.
        """
        self._view, self._settings = view, settings
        self._size: dict[str, Any] = {"max_memory_percent": share}
        if view.device.type == "cpu":
            self._size = {"page_size": PAGE, "max_batch_tokens": PASS}
        if cache_tokens is not None:
            page = self._size.get("page_size", ContinuousBatchingConfig.page_size)
            self._size["num_blocks"] = ceil(cache_tokens / page) + 1
        self._batches: dict[bool, Any] = {}  # transformers' managers, by whether they draw
        self._numbers = itertools.count()

    def begin(self, ask: Ask, tell: Tell) -> Callable[[], None]:
        """Begin an answer, and return what ends it, which must be called in any case."""
        batch, name = self._batch(drawn=bool(ask.rule)), str(next(self._numbers))

        def take(new: Any) -> None:
            tell(Progress(new.generated_tokens, new.logprobs, new.is_finished(), new.error))

        def end() -> None:
            # transformers has forgotten what handles the results of an answer that has ended.
            if batch.output_router.result_handlers.pop(name, None):
                batch.cancel_request(name)
            while batch.get_result(timeout=0):  # what came of answers that had been ended
                pass

        batch.register_result_handler(name, take)
        added = batch.add_request(
            ask.ids, request_id=name, max_new_tokens=ask.most, streaming=True, **ask.rule
        )
        if added is None:
            tell(Progress([], [], failed="the batch ended"))
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
            config = GenerationConfig.from_dict(self._view.generation_config.to_dict())
            config.update(**self._settings | (SAMPLING if drawn else {"do_sample": False}))
            batching = ContinuousBatchingConfig(
                return_logprobs=True, per_request_processors=drawn, auto_switch_to_flash=False,
                **self._size,
            )  # fmt: skip
            self._batches[drawn] = self._view.init_continuous_batching(config, batching)
            self._batches[drawn].start()
        return self._batches[drawn]


class OneByOne:
    """The requests to one name of the server, with ``generate``: for what cannot be batched.

    While one is answered, the whole model is taken.
    """

    has_logprobs = False

    def __init__(
        self, run: Run, shared: SharedModel, key: str | None, settings: dict[str, Any]
    ) -> None:
        """Take the run's ``settings`` of ``generate``; others are the model's own."""
        self._run, self._shared, self._key, self._settings = run, shared, key, settings
        self._stopped = False
        self._worker = ThreadPoolExecutor(1)

    def begin(self, ask: Ask, tell: Tell) -> Callable[[], None]:
        """Begin an answer, and return what ends it, which must be called in any case."""
        loop, ended = asyncio.get_running_loop(), threading.Event()

        def say(*progress: Any) -> None:
            loop.call_soon_threadsafe(tell, Progress(*progress))

        def write() -> None:
            try:
                streamer = TokenStreamer(lambda ids: say(ids, []))
                stop = Stop(lambda: ended.is_set() or self._stopped)
                say(self._write(ask, streamer, stop), [], True)
            except Exception as error:
                say([], [], True, str(error))

        written = self._worker.submit(write)

        def end() -> None:
            ended.set()
            written.cancel()  # it may not have begun

        return end

    def running(self) -> bool:
        """Whether it can answer now."""
        return not self._stopped

    def stop(self) -> None:
        """End it; answers that are being written end where they are."""
        self._stopped = True
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _write(self, ask: Ask, streamer: TokenStreamer, stop: Stop) -> list[int]:
        settings = {**self._settings, "max_new_tokens": ask.most}
        settings["stopping_criteria"] = StoppingCriteriaList([stop])
        if ask.rule:
            settings |= {**SAMPLING, **ask.rule, "num_beams": 1}
        own = self._shared.base.generation_config.num_beams
        if (settings.get("num_beams") or own or 1) == 1:
            settings["streamer"] = streamer
        with self._shared.turn(self._key):
            found = continue_batch(self._run, padded(self._run, [ask.ids]), settings)[0]
        # An encoder–decoder begins with what it starts from.
        ids: list[int] = found[self._run.kind == "encoder_decoder" :].tolist()
        return ids
