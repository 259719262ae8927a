"""The names that the server answers to, each run and the base alone, and the batches of each."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import ContinuousBatchingConfig, GenerationConfig

from lorada.inference.can_refill import end_tokens, reason_against
from lorada.inference.generate import generation_settings, room_for_prompts
from lorada.inference.load import Run, load_side_by_side
from lorada.inference.serving.refusals import EngineFailed
from lorada.inference.serving.shared_model import AdapterView, SharedModel
from lorada.runs.data.dataset import context_of

# On a processor: tokens in a page of a cache, tokens that one forward pass reads at most, and
# tokens in the cache of a batch, unless the user says otherwise.
PAGE, PASS, CACHE_TOKENS = 32, 512, 8192
# On an accelerator: the share of its free memory for the caches of all names.
MEMORY = 0.7
# Any values but those that switch a rule off: a rule that is off cannot be set by a request.
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}


class Ask(NamedTuple):
    """What one answer is to be.

    Attributes:
        ids: the prompt's tokens.
        most: how many tokens may be written.
        rule: how they are drawn, by ``temperature`` and ``top_p``; empty for the likeliest each
            time.
        logprobs: whether the log-probability of each is wanted.
    """

    ids: list[int]
    most: int
    rule: dict[str, float]
    logprobs: bool


class Served:
    """What answers to one name, with transformers' continuous batching.

    Greedy answers and drawn ones are two batches, because transformers chooses tokens by one rule
    in a batch. A batch is made when it is first asked for; each has a cache of its own.

    Attributes:
        name: the name, which requests give as ``model``.
        run: the run; for the base alone, one with the base as its model.
        room: most tokens of a prompt and its answer together; None for any number.
        most: tokens of an answer, unless a request says otherwise: those of ``lorada generate``.
        ends: the tokens that end an answer.
        stops: the texts that end an answer and stay in it, from the run's protocol.
        described: what the list of models says of it.
    """

    def __init__(
        self, name: str, run: Run, base: str, view: AdapterView, size: dict[str, Any]
    ) -> None:
        """Nothing is allocated yet.

        Args:
            name: the name.
            run: the run.
            base: the name of its base.
            view: the model as the run has it.
            size: of the cache of a batch, as ``ContinuousBatchingConfig`` takes it.

        Raises:
            ValueError: for a run that writes no text, or whose answers no batch can give.
        """
        self._settings = generation_settings(run)
        refuse_unbatched(run, self._settings)
        self.name, self.run, self.most = name, run, self._settings["max_new_tokens"]
        room_for_prompts(run, self.most)  # refuses what no prompt could go with
        cached = (size["num_blocks"] - 1) * size["page_size"] if "num_blocks" in size else None
        rooms = [room for room in (context_of(run.model.config), cached) if room is not None]
        self.room = min(rooms, default=None)
        self.ends = frozenset(end_tokens(run))
        self.stops = tuple(self._settings.get("stop_strings") or ())
        self.described = {"base": base} | ({"method": run.recipe.method} if run.key else {})
        self.view, self._size = view, size
        self.batches: dict[bool, Any] = {}  # transformers' managers, by whether they draw
        self._numbers = itertools.count()

    def begin(self, ask: Ask, tell: Callable[[Any], object]) -> Callable[[], None]:
        """Begin an answer, and return what ends it, which must be called in any case.

        ``tell`` is called in the event loop, after each token or more of the answer, with
        transformers' ``GenerationOutput``.

        Raises:
            EngineFailed: if the batch has just ended.
        """
        batch, name = self._batch(drawn=bool(ask.rule)), str(next(self._numbers))

        def end() -> None:
            # transformers has forgotten what handles the results of an answer that has ended.
            if batch.output_router.result_handlers.pop(name, None):
                batch.cancel_request(name)
            while batch.get_result(timeout=0):  # what came of answers that had been ended
                pass

        batch.register_result_handler(name, tell)
        added = batch.add_request(
            ask.ids, request_id=name, max_new_tokens=ask.most, streaming=True, **ask.rule
        )
        if added is None:
            raise EngineFailed("the batch ended")
        return end

    def running(self) -> bool:
        """Whether it can answer now: a batch that died is made anew by the next request."""
        return all(batch.is_running() for batch in self.batches.values())

    def stop(self) -> None:
        """End it; answers that are being written fail."""
        for batch in self.batches.values():
            batch.stop(block=True, timeout=10, hard_stop=True)

    def _batch(self, *, drawn: bool) -> Any:
        if drawn not in self.batches or not self.batches[drawn].is_running():
            config = GenerationConfig.from_dict(self.view.generation_config.to_dict())
            config.update(**self._settings | (SAMPLING if drawn else {"do_sample": False}))
            batching = ContinuousBatchingConfig(
                return_logprobs=True, per_request_processors=drawn, auto_switch_to_flash=False,
                **self._size,
            )  # fmt: skip
            self.batches[drawn] = self.view.init_continuous_batching(config, batching)
            self.batches[drawn].start()
        return self.batches[drawn]


def open_served(
    folders: Sequence[Path], *, cache_tokens: int | None = None, trust_remote_code: bool = False
) -> dict[str, Served]:
    """Load finished runs on one base, and give each and the base a name.

    Args:
        folders: of the runs.
        cache_tokens: keys and values that the cache of a batch holds; None for a number of our own
            on a processor, and for what memory allows on an accelerator.
        trust_remote_code: whether code of a model's repository may run.

    Raises:
        ValueError: as ``load_side_by_side`` and ``Served`` do.
    """
    runs = load_side_by_side(folders, trust_remote_code=trust_remote_code)
    first = next(iter(runs.values()))
    shared, base = SharedModel(first.model), first.recipe.model  # a hub id, or a folder's name
    base = Path(base).resolve().name if Path(base).is_dir() else base
    base = f"base:{base}" if base in runs else base
    if isinstance(first.model, PeftModel):
        runs[base] = replace(first, model=shared.base, key=None)
    size: dict[str, Any] = {"max_memory_percent": MEMORY / len(runs)}
    if first.device.type == "cpu":
        size = {"page_size": PAGE, "max_batch_tokens": PASS}
        cache_tokens = cache_tokens or CACHE_TOKENS
    if cache_tokens is not None:
        size.setdefault("page_size", ContinuousBatchingConfig.page_size)
        size["num_blocks"] = ceil(cache_tokens / size["page_size"]) + 1
    return {
        name: Served(name, run, base, AdapterView(shared, run.key), size)
        for name, run in runs.items()
    }


def refuse_unbatched(run: Run, settings: dict[str, Any]) -> None:
    """Refuse a run for which continuous batching does not give the tokens of ``generate``.

    Raises:
        ValueError: saying why, and what answers it.
    """
    why = reason_against(run, settings)
    base = run.model.get_base_model() if isinstance(run.model, PeftModel) else run.model
    if why is None and not base._supports_attention_backend:
        why = f"{type(base).__name__} computes attention itself"
    if why is not None:
        raise ValueError(
            f"{run.folder} cannot be served, as {why}: lorada generate and lorada chat answer it"
        )
