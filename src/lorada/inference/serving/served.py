"""What answers under a name: a run or the base alone that writes text, or a run that classifies.

Writers share one base model, in turn, each with its own adapter switched on.
"""

import itertools
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.continuous_api import ContinuousMixin

from lorada.attention.interface import install
from lorada.data.task_rows import Rows, rows_to_answer
from lorada.data.tokenize import EMPTY, context_of, dataset_of, encode_each, encode_options
from lorada.inference.evaluate import answer_rows
from lorada.inference.generate import chat_prompt, generation_settings, reason_against, tokens_of
from lorada.inference.load import Run, load_run, load_side_by_side
from lorada.inference.predict import as_answer
from lorada.inference.serving.requests import ChatRequest, CompletionRequest, Refused
from lorada.runs.folder import adapter_names
from lorada.support.row_sources import Row

logger = logging.getLogger(__name__)

# On a processor: tokens in a page of a cache, tokens that one forward pass reads at most, and
# tokens in the cache of a batch, of keys and values.
PAGE, PASS, CACHE_TOKENS = 32, 512, 8192
# On an accelerator: the share of its free memory for the caches of all names.
MEMORY = 0.7
# Any values but those that switch a rule off: a rule that is off cannot be set by a request.
# Scores that are no numbers would end the batch, and on a GPU the process.
SAMPLING = {
    "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "remove_invalid_values": True,
}  # fmt: skip
# Colder requests take the likeliest token: scores over a smaller number may be infinite in fp32,
# and what is not a number ends a batch for all its requests.
COLDEST = 1e-6


class SharedModel:
    """A model with all its adapters; ``base`` is the transformers model in it, which is what runs.

    No name keeps the others waiting: while it chooses tokens, one of them gets the model.
    """

    def __init__(self, model: PeftModel | PreTrainedModel) -> None:
        self._whole = model
        self.base = model.get_base_model() if isinstance(model, PeftModel) else model
        install()  # also without maps: packed sequences are then computed in parts
        self._free = threading.Lock()
        self._active: str | None = ""  # no adapter's name: the first turn always switches

    def run(self, key: str | None, inputs: dict[str, Any]) -> Any:
        """One forward pass with the adapter ``key``, or None for none."""
        with self._free:
            if key != self._active and isinstance(self._whole, PeftModel):
                layers = self._whole.base_model
                if key is None:
                    layers.disable_adapter_layers()
                else:
                    self._whole.set_adapter(key, inference_mode=True)
                    if self._active is None:
                        layers.enable_adapter_layers()
                self._active = key
            return self.base(**inputs)


class AdapterView(ContinuousMixin):  # type: ignore[misc]
    """The shared model as one adapter has it, for transformers' continuous batching to run."""

    def __init__(self, shared: SharedModel, key: str | None) -> None:
        self._shared, self._key = shared, key

    def __call__(self, **inputs: Any) -> Any:
        """One forward pass, with this adapter switched on."""
        return self._shared.run(self._key, inputs)

    def eval(self) -> "AdapterView":
        """Nothing: a loaded run is in evaluation mode."""
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shared.base, name)


class Ask(NamedTuple):
    """What one answer is to be: behind the prompt's ``ids``, at most ``most`` tokens.

    They are drawn by ``rule``, a temperature and ``top_p``; if it is empty, each is the likeliest.
    """

    ids: list[int]
    most: int
    rule: dict[str, Any]


class Served:
    """What answers to one name, with transformers' continuous batching.

    Greedy answers and drawn ones are two batches, because transformers chooses tokens by one rule
    in a batch. A batch is made when it is first asked for; each has a cache of its own. The base
    alone is a run with the base as its model.
    """

    def __init__(self, name: str, run: Run, view: AdapterView, size: dict[str, Any]) -> None:
        """Allocate nothing yet; ``size`` is of a batch's cache, in transformers' words."""
        self._settings = generation_settings(run)
        why = reason_against(run, self._settings)
        model = run.model.get_base_model() if isinstance(run.model, PeftModel) else run.model
        if why is None and not model._supports_attention_backend:
            why = f"{type(model).__name__} computes attention itself"
        if why is not None:
            raise ValueError(
                f"{run.folder} cannot be served, as {why}: lorada generate and lorada chat answer "
                "it"
            )
        self.name, self.run = name, run
        self.most = self._settings["max_new_tokens"]  # of ``lorada generate``
        cached = (size["num_blocks"] - 1) * size["page_size"] if "num_blocks" in size else None
        rooms = [room for room in (context_of(run.model.config), cached) if room is not None]
        self.room = min(rooms, default=None)  # tokens of a prompt with its answer; None: any number
        # What ends an answer and stays in it: tokens, and texts of the run's protocol.
        self.ends = frozenset(self._settings.get("eos_token_id", ()))
        self.stops = tuple(self._settings.get("stop_strings") or ())
        self.view, self._size = view, size
        self.batches: dict[bool, Any] = {}  # transformers' managers, by whether they draw
        self._numbers = itertools.count()

    def begin(self, ask: Ask, tell: Callable[[Any], object]) -> Callable[[], None]:
        """Begin an answer, and return what ends it, which must be called in any case.

        ``tell`` is called in the event loop, with transformers' ``GenerationOutput`` so far.
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
            raise failed("the batch ended")
        return end

    def stop(self) -> None:
        """End it; answers that are being written fail."""
        for batch in self.batches.values():
            batch.stop(block=True, timeout=10, hard_stop=True)

    def _batch(self, *, drawn: bool) -> Any:
        """One of the two batches; one that died is made anew."""
        if drawn not in self.batches or not self.batches[drawn].is_running():
            config = GenerationConfig.from_dict(self.view.generation_config.to_dict())
            config.update(**self._settings | (SAMPLING if drawn else {"do_sample": False}))
            batching = ContinuousBatchingConfig(
                per_request_processors=drawn, auto_switch_to_flash=False, **self._size
            )
            batch = self.view.init_continuous_batching(config, batching)
            batch.start()
            self.batches[drawn] = batch
        return self.batches[drawn]


def failed(error: object) -> Refused:
    """The refusal of a request whose batch ended with an error; only the log says which."""
    logger.error("a request failed: %s", " ".join(str(error).split()))
    return Refused(503, "the model failed at this answer: try again", code="engine_failed")


def open_served(folders: Sequence[Path], *, trust_remote_code: bool = False) -> dict[str, Served]:
    """Load finished runs on one base, and give each and the base a name."""
    runs = load_side_by_side(folders, trust_remote_code=trust_remote_code)
    first = next(iter(runs.values()))
    shared, model = SharedModel(first.model), first.recipe.model
    # What clients are told of a base: its id on the hub, or the name of its folder.
    base = Path(os.path.abspath(model)).name if Path(model).is_dir() else model
    base = f"base:{base}" if base in runs else base
    if isinstance(first.model, PeftModel):
        runs[base] = replace(first, model=shared.base, key=None)
    size: dict[str, Any] = {"max_memory_percent": MEMORY / len(runs)}
    if first.device.type == "cpu":
        blocks = CACHE_TOKENS // PAGE + 1
        size = {"page_size": PAGE, "max_batch_tokens": PASS, "num_blocks": blocks}
    views = {name: AdapterView(shared, run.key) for name, run in runs.items()}
    return {name: Served(name, run, views[name], size) for name, run in runs.items()}


def ask_of(served: Served, request: ChatRequest | CompletionRequest) -> Ask:
    """What is asked for in a request; where it says no length, it is what fits."""
    most, param = request.max_tokens, "prompt"
    if isinstance(request, ChatRequest):
        most, param = request.max_completion_tokens or most, "messages"
    try:
        ids = _ids(served, request)
    except ValueError as error:  # an empty prompt, or turns that the chat template refuses
        raise Refused(400, str(error), param=param) from error
    highest, known = max(ids), served.run.model.config.get_text_config().vocab_size
    if highest >= known:
        said = f"{highest} is no token of this model, which has {known}"
        raise Refused(400, said, param=param)
    left = None if served.room is None else served.room - len(ids)
    if left is not None and left < (most or 1):
        asked = f" and an answer of {most}" if most else ""
        raise Refused(
            400, f"a prompt of {len(ids)} tokens{asked} does not fit: there is room for "
            f"{served.room}", code="context_length_exceeded",
        )  # fmt: skip
    return Ask(ids, most or left or served.most, _rule(request))


def _ids(served: Served, request: ChatRequest | CompletionRequest) -> list[int]:
    """The tokens of a conversation by its template, or of a prompt; ids stay as they are."""
    run = served.run
    if isinstance(request, ChatRequest):
        if not run.tokenizer.chat_template:
            raise ValueError(f"{served.name} has no chat template: ask /v1/completions")
        prompt = chat_prompt(run, [message.turn() for message in request.messages])
        return tokens_of(run, [prompt], None, templated=True)[0]
    if isinstance(request.prompt, str):
        return tokens_of(run, [request.prompt], None, templated=False)[0]
    return request.prompt


def _rule(request: ChatRequest | CompletionRequest) -> dict[str, Any]:
    """How an answer is drawn, empty if it is not; whether a seed is followed is seen only then."""
    if (heat := request.temperature or 0.0) < COLDEST:
        return {}
    if request.seed is not None:
        raise Refused(400, "'seed' is not offered here: leave it out", param="seed")
    return {"temperature": heat, "top_p": 1.0 if request.top_p is None else request.top_p}


class Classifier:
    """A run that answers at ``/v1/classify`` as ``lorada predict`` does, one request at a time."""

    def __init__(self, name: str, run: Run) -> None:
        self.name, self.run = name, run
        what = {"score": "scores texts", "choice": "chooses among candidates"}
        self.does = what.get(run.form, f"labels texts {', '.join(run.labels)}")
        self._turn = threading.Lock()

    def classify(self, rows: list[Row]) -> dict[str, Any]:
        """The response to rows; probabilities are in the order of the run's classes."""
        run = self.run
        try:
            asked = rows_to_answer(rows, "input", run.form, run.labels, pairs=run.pairs)
        except ValueError as error:
            raise Refused(400, str(error), param="input") from error
        with self._turn, torch.no_grad():
            encoded = dataset_of(self._features(asked))
            found = sorted(answer_rows(run, asked, encoded=encoded))
        data = [{"index": i, **as_answer(asked, i, one)} for i, one in found]
        for one in data if run.form == "label" else ():
            one["probs"] = list(one["probs"].values())
            one["num_classes"] = len(run.labels)
        return {
            "id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()),
            "model": self.name, "data": data,
        }  # fmt: skip

    def _features(self, rows: Rows) -> Iterator[dict[str, Any]]:
        """The features of rows, none of which may be cut."""
        run = self.run
        options = encode_options(rows, run.recipe, run.kind)
        for index, one in encode_each(rows, run.tokenizer, options):
            where = f"input row {index + 1}"
            if one is EMPTY:
                raise Refused(400, f"{where} has no token of this model", param="input")
            if one is None or one.truncated:
                said = f"{where} is longer than the {options.max_length} tokens that are read here"
                raise Refused(400, said, code="context_length_exceeded", param="input")
            yield one.features


def open_classifiers(
    folders: Sequence[Path], *, trust_remote_code: bool = False
) -> dict[str, Classifier]:
    """Load finished runs, each with a base of its own, by the names of their folders."""
    return {
        name: Classifier(name, load_run(folder, trust_remote_code=trust_remote_code))
        for name, folder in zip(adapter_names(folders), folders, strict=True)
    }
