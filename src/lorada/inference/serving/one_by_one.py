"""Answers one request after the other, with ``generate``: for what cannot be batched."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers.generation import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from lorada.inference.load import Run
from lorada.inference.serving.engine import Ask, EngineFailed, Progress
from lorada.inference.serving.shared_model import SharedModel
from lorada.inference.stream import Stop


class OneByOne:
    """The requests to one name of the server; while one is answered, the whole model is taken."""

    has_logprobs = False

    def __init__(
        self, run: Run, shared: SharedModel, key: str | None, settings: dict[str, Any]
    ) -> None:
        """Take the run's ``settings`` of ``generate``; others are the model's own."""
        self.room: int | None = None
        self._run, self._shared, self._key = run, shared, key
        self._settings = {"num_beams": shared.base.generation_config.num_beams or 1, **settings}
        self._ended = threading.Event()
        self._worker = ThreadPoolExecutor(1)

    async def write(self, ask: Ask) -> AsyncGenerator[Progress]:
        """See ``Engine``."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[list[int] | None]()
        stopped = threading.Event()
        work = loop.run_in_executor(
            self._worker, self._generate, ask, stopped, _Sender(loop, pieces)
        )
        work.add_done_callback(lambda _: pieces.put_nowait(None))
        ids: list[int] = []
        try:
            while (piece := await pieces.get()) is not None:
                ids += piece
                yield Progress(ids, [], done=False)
            try:
                yield Progress(await work, [], done=True)
            except Exception as error:
                raise EngineFailed(" ".join(str(error).split())) from error
        finally:
            stopped.set()
            work.cancel()  # it may not have begun

    def running(self) -> bool:
        """See ``Engine``."""
        return not self._ended.is_set()

    def stop(self) -> None:
        """See ``Engine``."""
        self._ended.set()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _generate(self, ask: Ask, stopped: threading.Event, sender: "_Sender") -> list[int]:
        """The token ids of an answer."""
        settings = {**self._settings, "do_sample": False, "max_new_tokens": ask.most}
        if ask.sampled:
            settings |= {"do_sample": True, "temperature": ask.temperature, "top_p": ask.top_p}
            settings |= {"num_beams": 1, "top_k": 0}
        if settings["num_beams"] == 1:
            settings["streamer"] = sender
        if "stop_strings" in settings:
            settings["tokenizer"] = self._run.tokenizer
        read = torch.tensor([ask.ids], device=self._run.device)
        ends = Stop(lambda: stopped.is_set() or self._ended.is_set())
        model = self._shared.base if self._key is None else self._shared.whole
        with self._shared.turn(self._key), torch.no_grad():
            found: Tensor = model.generate(
                input_ids=read,
                attention_mask=torch.ones_like(read),
                pad_token_id=self._run.tokenizer.pad_token_id,
                stopping_criteria=StoppingCriteriaList([ends]),
                **settings,
            )[0]
        # A decoder repeats the prompt; an encoder–decoder begins with what it starts from.
        read_again = 1 if self._run.kind == "encoder_decoder" else len(ask.ids)
        ids: list[int] = found[read_again:].tolist()
        return ids


class _Sender(BaseStreamer):  # type: ignore[misc]
    """Sends each new token to a queue; the first call brings the prompt."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, pieces: "asyncio.Queue[list[int] | None]"
    ) -> None:
        self._loop, self._pieces = loop, pieces
        self._begun = False

    def put(self, value: Tensor) -> None:
        """Take a token."""
        if self._begun:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, value.flatten().tolist())
        self._begun = True

    def end(self) -> None:
        """Nothing: the end of the work is."""
