"""Switches that take one mechanism for speed or memory out of lorada, where it is called."""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pkgutil import resolve_name
from typing import Any
from unittest import mock

from peft.tuners.lora import Linear
from torch import Tensor, nn
from transformers import Trainer

from lorada.attention import packed_attention
from lorada.attention.attention_map import AttentionMap
from lorada.attention.call import CallShape
from lorada.attention.map_term import _gathered_term
from lorada.attention.positions import TokenSpan
from lorada.attention.sliced_term import queries_under_map
from lorada.functional.dropout import Dropout
from lorada.runs.models.candidate_scores import sequence_scores
from lorada.tuners.lmam import LmamLayer
from lorada.tuners.lora import LoraLinear

NOISE, ALL = "noise", "all"
Switch = Callable[[Any], Any]  # makes a context in which a mechanism is off for some work


@dataclass(frozen=True)
class Mechanism:
    """One mechanism.

    Attributes:
        name: what the table calls it.
        off: its switch.
        seam: names of functions that are called more or less often where the mechanism is on.
        code: the modules of lorada, and objects in them, that would go with it.
        alike: whether it works alike on every device.
        last: whether the line "all of these" leaves it on, since it is to stay or is in another.
    """

    name: str
    off: Switch
    seam: str
    code: tuple[str, ...]
    alike: str
    last: bool = False


@contextmanager
def peft_layers(work: Any, *, dropout: bool = True) -> Iterator[None]:
    """PEFT's layers in the place of lorada's, and torch's dropout."""
    kinds = {LoraLinear: Linear, Dropout: nn.Dropout} if dropout else {LoraLinear: Linear}
    changed = [(m, type(m)) for m in work.model.modules() if type(m) in kinds]
    for module, kind in changed:
        module.__class__ = kinds[kind]
    yield
    for module, kind in changed:
        module.__class__ = kind


@contextmanager
def unfinished_maps(work: Any) -> Iterator[None]:
    """Rows of maps are made from the factors in each call."""
    kept = [(m, m._baked) for m in work.model.modules() if isinstance(m, LmamLayer)]
    for layer, _ in kept:
        layer._baked = {}
    yield
    for layer, baked in kept:
        layer._baked = baked


@contextmanager
def whole_row(work: Any) -> Iterator[None]:
    """Attention of packed sequences over all keys of the row."""
    packed_attention._plans = ()
    with mock.patch.object(packed_attention, "packed_parts", return_value=None):
        yield
    packed_attention._plans = ()


@contextmanager
def copied_keys(work: Any) -> Iterator[None]:
    """Keys are copied for each query head, as transformers does by default."""
    with mock.patch.dict(os.environ):
        os.environ.pop("TRANSFORMERS_SDPA_FORCE_GQA", None)
        yield


@contextmanager
def random_order(work: Any) -> Iterator[None]:
    """Batches of rows in random order, whatever their lengths."""
    with mock.patch.object(work.trainer.args, "train_sampling_strategy", "random"):
        yield


def gathered_term(own: AttentionMap, span: TokenSpan, shape: CallShape, value: Tensor) -> Tensor:
    """What ``sliced_term`` returns, from values that are gathered into the order of the map."""
    count = span.stop - span.first
    table = span.table(count, value.shape[2], value.device)
    term = _gathered_term(own, table, replace(shape, queries=count), value)
    return term[:, queries_under_map(own.length, span)]


def without(*paths: str, by: Any = lambda *_, **__: None) -> Switch:
    """A switch that puts ``by`` in the place of some of lorada's functions."""

    @contextmanager
    def switched(work: Any) -> Iterator[None]:
        with ExitStack() as stack:
            for path in paths:
                stack.enter_context(mock.patch(f"lorada.{path}", by))
            yield

    return switched


LORA = ("functional.lora_linear", "tuners.lora", "tuners.stack.faster_layers")
STEP = ("attention.attend.known_step", "attention.attend.step_of_layer_before")
MECHANISMS = {
    NOISE: Mechanism("nothing (noise)", lambda _: nullcontext(), "", (), "–", last=True),
    "lora": Mechanism(
        "own LoRA layer and dropout, for PEFT's and torch's", peft_layers,
        "lorada.tuners.lora.lora_linear", (*LORA, "functional.dropout"), "no",
    ),
    "lora_alone": Mechanism(
        "own LoRA layer, for PEFT's", partial(peft_layers, dropout=False),
        "lorada.tuners.lora.lora_linear", LORA, "no", last=True,
    ),
    "plain": Mechanism(
        "`plain_attention`", without("runs.training.trainer.plain_attention", by=nullcontext),
        "lorada.attention.plain_attention.plain_products", ("attention.plain_attention",), "no",
    ),
    "labelled": Mechanism(
        "logits only where labels count",
        without("runs.training.trainer.RunTrainer._labelled",
                "runs.inference.evaluate.find_labelled_loss"),
        "lorada.runs.models.labelled_loss._before", ("runs.models.labelled_loss",), "yes",
        last=True,
    ),
    "lengths": Mechanism(
        "own batches of alike length, for the Trainer's",
        without("runs.training.trainer.RunTrainer._get_train_sampler",
                by=Trainer._get_train_sampler),
        "lorada.runs.data.length_sampler.LengthGroupedSampler.__iter__",
        ("runs.data.length_sampler",), "yes", last=True,
    ),
    "order": Mechanism(
        "batches of alike length, for random ones", random_order,
        "lorada.runs.data.length_sampler.LengthGroupedSampler.__iter__",
        ("runs.data.length_sampler",), "yes", last=True,
    ),
    "cache": Mechanism(
        "`token_cache`",
        without("runs.data.dataset.cached", by=lambda rows, tokenizer, options, make: make()),
        "lorada.runs.data.token_cache._read", ("runs.data.token_cache",), "yes",
    ),
    "sliced": Mechanism(
        "`sliced_term`, for gathering",
        without("attention.map_term.sliced_term", "attention.packed_step.sliced_term",
                by=gathered_term),
        "lorada.attention.map_term.sliced_term lorada.attention.packed_step.sliced_term",
        ("attention.sliced_term",), "yes",
    ),
    "keys": Mechanism(
        "`grouped_heads` and the switch in the environment", copied_keys,
        "transformers.integrations.sdpa_attention.repeat_kv", ("attention.grouped_heads",), "no",
    ),
    "grouped": Mechanism(
        "`grouped_heads` alone", without("attention.grouped_heads._may_be_grouped"),
        "lorada.attention.grouped_heads._may_be_grouped", ("attention.grouped_heads",), "no",
        last=True,
    ),
    "pairs": Mechanism(
        "`pairs`", without("attention.map_term.pairs_of_table", "attention.packed_step.layout_of"),
        "lorada.attention.pairs.Pairs.term", ("attention.pairs",), "no",
    ),
    "refilled": Mechanism(
        "`refilled_batch`, for padded batches", without("runs.inference.generate.can_refill"),
        "lorada.runs.inference.generate.write_answers",
        ("runs.inference.refilled_batch", "runs.inference.can_refill:can_refill",
         "runs.models.refilled_cache"), "yes", last=True,
    ),
    "shared": Mechanism(
        "prompts that their candidates share",
        without("runs.inference.evaluate.cached_scores", by=sequence_scores),
        "lorada.runs.models.candidate_scores._cut",
        ("runs.models.candidate_scores:cached_scores", "runs.models.candidate_scores:_cut"),
        "yes", last=True,
    ),
    "packed_attention": Mechanism(
        "`packed_attention`", whole_row, "lorada.attention.packed_attention.packed_parts",
        ("attention.packed_attention",), "no",
    ),
    "packed_step": Mechanism(
        "`packed_step`, `packed_positions`", without(*STEP),
        "lorada.attention.packed_step.packed_step",
        ("attention.packed_step", "attention.packed_positions"), "no",
    ),
    "packed_term": Mechanism(
        "`packed_step`, `packed_positions`, `packed_term`",
        without(*STEP, "attention.map_term.packed_term"),
        "lorada.attention.packed_step.packed_step",
        ("attention.packed_step", "attention.packed_positions", "attention.packed_term"), "no",
    ),
    "finished": Mechanism(
        "finished maps", unfinished_maps,
        "lorada.attention.attention_map.AttentionMap.scaled_factors",
        ("tuners.lmam:bake", "tuners.lmam:LmamLayer.bake",
         "runs.serving.shared_model:finished_bytes"), "yes", last=True,
    ),
}  # fmt: skip
MECHANISMS[ALL] = Mechanism("all that are to go, together", lambda _: nullcontext(), "", (), "–")


@contextmanager
def off(state: str, states: list[str], work: Any) -> Iterator[None]:
    """Switch a mechanism off; for ``ALL``, those of ``states`` that are to go."""
    names = [state]
    if state == ALL:
        names = [name for name in states if name != ALL and not MECHANISMS[name].last]
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(MECHANISMS[name].off(work))
        yield


@contextmanager
def counted(paths: str) -> Iterator[list[str]]:
    """A list that grows with each call of some functions."""
    calls: list[str] = []

    def counting(path: str) -> Callable[..., Any]:
        original = resolve_name(path)

        def count(*args: Any, **kwargs: Any) -> Any:
            calls.append(path)
            return original(*args, **kwargs)

        return count

    with ExitStack() as stack:
        for path in paths.split():
            stack.enter_context(mock.patch(path, counting(path)))
        yield calls


def lines_of(state: str) -> int:
    """Lines of the code that would go with a mechanism."""
    found = (resolve_name(f"lorada.{path}") for path in MECHANISMS[state].code)
    return sum(len(inspect.getsource(each).splitlines()) for each in found)
