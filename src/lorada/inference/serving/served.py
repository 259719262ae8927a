"""What answers under a name: a run or the base alone that writes text, or a run that classifies.

Writers share one base model, in turn, each with its own adapter switched on. A token that is drawn
depends on its request's seed and its position, whatever else is in the batch:

    token = the first t with P(1) + … + P(t) > u(seed, position), u in [0, 1)

Shapes: B requests, V tokens of the vocabulary.
"""

import itertools
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from pathlib import Path
from random import Random
from secrets import randbits
from typing import Any, ClassVar, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
)
from transformers.generation.continuous_batching.continuous_api import ContinuousMixin

from lorada.attention.interface import install
from lorada.data.task_rows import Rows, rows_to_answer
from lorada.data.tokenize import EMPTY, context_of, dataset_of, encode_each, encode_options
from lorada.inference.evaluate import answer_rows
from lorada.inference.generate import (
    chat_prompt,
    generation_settings,
    reason_against,
    tokens_of,
)
from lorada.inference.load import Run, load_run, load_side_by_side
from lorada.inference.predict import as_answer
from lorada.inference.serving.requests import (
    ChatRequest,
    CompletionRequest,
    EngineFailed,
    Record,
    Refused,
)
from lorada.runs.folder import adapter_names
from lorada.support.row_sources import Row

# On a processor: tokens in a page of a cache, tokens that one forward pass reads at most, and
# tokens in the cache of a batch, unless the user says otherwise.
PAGE, PASS, CACHE_TOKENS = 32, 512, 8192
# On an accelerator: the share of its free memory for the caches of all names.
MEMORY = 0.7
# Any values but those that switch a rule off: a rule that is off cannot be set by a request.
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}
# Colder requests take the likeliest token: scores over a smaller number may be infinite in fp32,
# and what is not a number ends a batch for all its requests.
COLDEST = 1e-6
BITS = 23  # of u: so many that fp32 holds u, and u times a sum near 1 stays below the sum


class SharedModel:
    """A model with all its adapters; ``base`` is the transformers model in it, which is what runs.

    Whoever runs it takes a turn. Turns are given in the order in which they were asked for, so that
    an adapter with many requests does not keep the others waiting.
    """

    def __init__(self, model: PeftModel | PreTrainedModel) -> None:
        self._whole = model
        self.base = model.get_base_model() if isinstance(model, PeftModel) else model
        install()  # also without maps: packed sequences are then computed in parts
        self._changed = threading.Condition()
        self._given = self._done = 0
        self._active: str | None = ""  # no adapter's name: the first turn always switches

    @contextmanager
    def turn(self, key: str | None) -> Iterator[None]:
        """Have the model alone in a ``with`` block, with the adapter ``key``, or None for none."""
        with self._changed:
            mine, self._given = self._given, self._given + 1
            self._changed.wait_for(lambda: self._done == mine)
        try:
            self._activate(key)
            yield
        finally:
            with self._changed:
                self._done += 1
                self._changed.notify_all()

    def _activate(self, key: str | None) -> None:
        if key == self._active or not isinstance(self._whole, PeftModel):
            return
        layers = self._whole.base_model  # learned prompts have none: the base runs without them
        if key is not None:
            self._whole.set_adapter(key, inference_mode=True)
        if isinstance(layers, BaseTuner) and None in (key, self._active):
            switch = layers.disable_adapter_layers if key is None else layers.enable_adapter_layers
            switch()
        self._active = key


class AdapterView(ContinuousMixin):  # type: ignore[misc]
    """The shared model as one adapter has it, for transformers' continuous batching to run."""

    def __init__(self, shared: SharedModel, key: str | None) -> None:
        self._shared, self._key = shared, key

    def __call__(self, **inputs: Any) -> Any:
        """One forward pass, with this adapter switched on."""
        with self._shared.turn(self._key):
            return self._shared.base(**inputs)

    def eval(self) -> "AdapterView":
        """Nothing: a loaded run is in evaluation mode."""
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shared.base, name)


class Draw(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """The last step of choosing a token: it leaves the one that is drawn, with all probability."""

    supported_kwargs: ClassVar[dict[str, type]] = {"seed": int}
    ignored_kwargs = ()

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Any number will do for places without a request."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        """The u of each request's next token (B,), kept as int32 as transformers keeps all."""
        states = [request.state for request in requests_with_new_token]
        seeds = (f"{one.logit_processor_kwargs['seed']} {one.position_offset}" for one in states)
        drawn = [Random(seed).getrandbits(BITS) / 2**BITS for seed in seeds]
        return torch.tensor(drawn, dtype=torch.float32).view(torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Scores (B, V) of which only the drawn token's is not −∞."""
        drawn = tensor_arg[: len(scores), None].view(torch.float32)
        sums = scores.softmax(-1).cumsum(-1)
        token = torch.searchsorted(sums, drawn * sums[:, -1:], right=True)
        token = token.clamp(max=scores.shape[-1] - 1)  # of scores that are no numbers
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)


class Ask(NamedTuple):
    """What one answer is to be: behind the prompt's ``ids``, at most ``most`` tokens.

    They are drawn by ``rule``, a temperature, ``top_p`` and a seed; if it is empty, each is the
    likeliest.
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

    def __init__(
        self, name: str, run: Run, base: str, view: AdapterView, size: dict[str, Any]
    ) -> None:
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
        self.described = {"base": base} | ({"method": run.recipe.method} if run.key else {})
        self.view, self._size = view, size
        self.batches: dict[bool, Any] = {}  # transformers' managers, by whether they draw
        self._numbers = itertools.count()

    def begin(self, ask: Ask, tell: Callable[[Any], object]) -> Callable[[], None]:
        """Begin an answer, and return what ends it, which must be called in any case.

        ``tell`` is called in the event loop, after each token or more of the answer, with
        transformers' ``GenerationOutput``.
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
                per_request_processors=drawn, auto_switch_to_flash=False, **self._size
            )
            batch = self.view.init_continuous_batching(config, batching)
            if drawn:
                # Its list of processors has no way of its own to add one.
                batch.logit_processor.logits_processor.append(Draw())
                batch.logit_processor.tensors_required += 1
                batch.logit_processor._retrieve_processors_kwargs()
            batch.start()
            self.batches[drawn] = batch
        return self.batches[drawn]


def open_served(
    folders: Sequence[Path], *, cache_tokens: int | None = None, trust_remote_code: bool = False
) -> dict[str, Served]:
    """Load finished runs on one base, and give each and the base a name.

    The cache of a batch holds the keys and values of ``cache_tokens``; of as many as we think right
    on a processor, or as memory allows on an accelerator, if that is None.
    """
    runs = load_side_by_side(folders, trust_remote_code=trust_remote_code)
    first = next(iter(runs.values()))
    shared, base = SharedModel(first.model), first.recipe.model  # a hub id, or a folder's name
    base = base_name(base)
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
    views = {name: AdapterView(shared, run.key) for name, run in runs.items()}
    return {name: Served(name, run, base, views[name], size) for name, run in runs.items()}


def base_name(model: str) -> str:
    """What clients are told of a base: its id on the hub, or the name of its folder."""
    return Path(os.path.abspath(model)).name if Path(model).is_dir() else model


def asks_of(
    served: Served, request: ChatRequest | CompletionRequest, limit: int | None
) -> list[Ask]:
    """What is asked for each prompt of a request; ``limit`` is of an answer's tokens.

    Prompts that the model cannot continue are refused, and more tokens than there is room for.
    """
    most, param = request.max_tokens, "prompt"
    if isinstance(request, ChatRequest):
        most, param = request.max_completion_tokens or most, "messages"
    try:
        prompts = _ids(served, request)
    except ValueError as error:  # an empty prompt, or turns that the chat template refuses
        raise Refused(400, str(error), param=param) from error
    # Some tokenizers have more tokens than their model: those of pictures, for one.
    highest, known = max(map(max, prompts)), served.run.model.config.get_text_config().vocab_size
    if highest >= known:
        said = f"{highest} is no token of this model, which has {known}"
        raise Refused(400, said, param=param)
    return [Ask(ids, _most(served, len(ids), most, limit), _rule(request)) for ids in prompts]


def _rule(request: ChatRequest | CompletionRequest) -> dict[str, Any]:
    """How an answer is drawn, empty if it is not; without a seed each answer has one of its own."""
    if (heat := request.temperature or 0.0) < COLDEST:
        return {}
    seed = randbits(63) if request.seed is None else request.seed
    share = 1.0 if request.top_p is None else request.top_p
    return {"temperature": heat, "top_p": share, "seed": seed}


def _ids(served: Served, request: ChatRequest | CompletionRequest) -> list[list[int]]:
    """The tokens of a conversation by its template, or of each prompt; ids stay as they are."""
    run = served.run
    if isinstance(request, ChatRequest):
        if not run.tokenizer.chat_template:
            raise ValueError(f"{served.name} has no chat template: ask /v1/completions")
        prompt = chat_prompt(run, [message.turn() for message in request.messages])
        return tokens_of(run, [prompt], None, templated=True)
    given: Any = request.prompt
    prompts = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    if isinstance(prompts[0], str):
        return tokens_of(run, prompts, None, templated=False)
    return list(prompts)


def _most(served: Served, read: int, wanted: int | None, limit: int | None) -> int:
    """How many tokens an answer may have behind a prompt of ``read`` tokens.

    Where the request does not say, it is what fits; if the model has room for any number, it is
    what ``lorada generate`` writes.
    """
    left = None if served.room is None else served.room - read
    if left is not None and left < (wanted or 1):
        asked = f" and an answer of {wanted}" if wanted else ""
        raise Refused(
            400, f"a prompt of {read} tokens{asked} does not fit: there is room for {served.room}",
            code="context_length_exceeded",
        )  # fmt: skip
    if wanted is None:
        return min((most for most in (left, limit) if most is not None), default=served.most)
    if limit is not None and wanted > limit:
        raise Refused(400, f"{wanted} tokens are more than this server writes, {limit}")
    return wanted


class Classifier:
    """A run that answers at ``/v1/classify`` as ``lorada predict`` does, one request at a time.

    It labels texts, in vLLM's form, gives them scores, or chooses among candidates.
    """

    def __init__(self, name: str, run: Run) -> None:
        self.name, self._run = name, run
        self.described = {"base": base_name(run.recipe.model), "method": run.recipe.method}
        what = {"score": "scores texts", "choice": "chooses among candidates"}
        self.does = what.get(run.form, f"labels texts {', '.join(run.labels)}")
        self._turn = threading.Lock()

    def classify(self, rows: list[Row], record: Record) -> dict[str, Any]:
        """The response to rows; probabilities are in the order of the run's classes."""
        run = self._run
        try:
            asked = rows_to_answer(rows, "input", run.form, run.labels, pairs=run.pairs)
        except ValueError as error:
            raise Refused(400, str(error), param="input") from error
        with self._turn, torch.no_grad():
            encoded = dataset_of(self._features(asked, record))
            found = sorted(answer_rows(run, asked, encoded=encoded))
        data = [{"index": i, **as_answer(asked, i, one)} for i, one in found]
        for one in data if run.form == "label" else ():
            one["probs"] = list(one["probs"].values())
            one["num_classes"] = len(run.labels)
        return {
            "id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()),
            "model": self.name, "data": data, "usage": record.usage,
        }  # fmt: skip

    def _features(self, rows: Rows, record: Record) -> Iterator[dict[str, Any]]:
        """The features of rows, none of which may be cut; their tokens are counted."""
        run = self._run
        options = encode_options(rows, run.recipe, run.kind)
        for index, one in encode_each(rows, run.tokenizer, options):
            where = f"input row {index + 1}"
            if one is EMPTY:
                raise Refused(400, f"{where} has no token of this model", param="input")
            if one is None or one.truncated:
                said = f"{where} is longer than the {options.max_length} tokens that are read here"
                raise Refused(400, said, code="context_length_exceeded", param="input")
            parts = [one.features[name] for name in ("input_ids", "prompt") if name in one.features]
            record.read += sum(map(len, [*parts, *one.features.get("candidates", ())]))
            yield one.features


def open_classifiers(
    folders: Sequence[Path], *, trust_remote_code: bool = False
) -> dict[str, Classifier]:
    """Load finished runs, each with a base of its own, by the names of their folders."""
    return {
        name: Classifier(name, load_run(folder, trust_remote_code=trust_remote_code))
        for name, folder in zip(adapter_names(folders), folders, strict=True)
    }
