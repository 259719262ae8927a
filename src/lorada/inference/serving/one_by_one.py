"""Answers one request after the other, with ``generate``: for what cannot be batched."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers.generation import StoppingCriteriaList

from lorada.inference.load import Run
from lorada.inference.serving.engine import Ask, EngineFailed, Progress, Tell
from lorada.inference.serving.shared_model import SharedModel
from lorada.inference.stream import Stop, TokenStreamer


class OneByOne:
    """The requests to one name of the server; while one is answered, the whole model is taken."""

    has_logprobs = False
    room: int | None = None

    def __init__(
        self, run: Run, shared: SharedModel, key: str | None, settings: dict[str, Any]
    ) -> None:
        """Take the run's ``settings`` of ``generate``; others are the model's own."""
        self._run, self._shared, self._key = run, shared, key
        self._settings = {"num_beams": shared.base.generation_config.num_beams or 1, **settings}
        self._stopped = False
        self._worker = ThreadPoolExecutor(1)

    def begin(self, ask: Ask, tell: Tell) -> Callable[[], None]:
        """Begin an answer, and return what ends it, which must be called in any case."""
        loop, ended = asyncio.get_running_loop(), threading.Event()

        def work() -> None:
            def so_far(ids: list[int]) -> None:
                loop.call_soon_threadsafe(tell, Progress(ids, [], done=False))

            found: Progress | EngineFailed
            try:
                found = Progress(self._generate(ask, ended.is_set, so_far), [], done=True)
            except Exception as error:
                found = EngineFailed(str(error))
            loop.call_soon_threadsafe(tell, found)

        working = self._worker.submit(work)

        def end() -> None:
            ended.set()
            working.cancel()  # it may not have begun

        return end

    def running(self) -> bool:
        """Whether it can answer now."""
        return not self._stopped

    def stop(self) -> None:
        """End it; answers that are being written end where they are."""
        self._stopped = True
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _generate(
        self, ask: Ask, ended: Callable[[], bool], so_far: Callable[[list[int]], object]
    ) -> list[int]:
        """The token ids of an answer."""
        settings = {**self._settings, "do_sample": False, "max_new_tokens": ask.most}
        if ask.sampled:
            settings |= {"do_sample": True, "temperature": ask.temperature, "top_p": ask.top_p}
            settings |= {"num_beams": 1, "top_k": 0}
        if settings["num_beams"] == 1:
            settings["streamer"] = TokenStreamer(so_far)
        if "stop_strings" in settings:
            settings["tokenizer"] = self._run.tokenizer
        read = torch.tensor([ask.ids], device=self._run.device)
        model = self._shared.base if self._key is None else self._shared.whole
        with self._shared.turn(self._key), torch.no_grad():
            found = model.generate(
                input_ids=read,
                attention_mask=torch.ones_like(read),
                pad_token_id=self._run.tokenizer.pad_token_id,
                stopping_criteria=StoppingCriteriaList([Stop(lambda: ended() or self._stopped)]),
                **settings,
            )[0]
        # A decoder repeats the prompt; an encoder–decoder begins with what it starts from.
        read_again = 1 if self._run.kind == "encoder_decoder" else len(ask.ids)
        ids: list[int] = found[read_again:].tolist()
        return ids
