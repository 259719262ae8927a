"""``lorada export RUN DIR --format onnx``: writes a run as a graph of its whole computation.

The graph (``model.onnx``, ``model.onnx.data``) holds the base, what is merged into it, and what
cannot be merged: maps, bottlenecks, prefixes. It takes any number of texts and tokens, and
whoever runs it needs neither torch nor lorada. It is made by ``transformers.exporters``, and DIR is
kept only if the graph computes what torch does: padded batches are compared where there are tokens,
and a decoder reads the beginning of each text at once and its last tokens one by one.

A decoder becomes one graph that reads new tokens behind a cache of any length, empty at first. A
model with a head reads whole texts; its ``past`` is 0, and it has no cache and no ``position_ids``.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lorada.data.dataset import context_of
from lorada.data.tokenize import ends_texts
from lorada.inference.can_refill import end_tokens
from lorada.inference.export import (
    AGAIN,
    copy_licence,
    kinds,
    merge,
    name_ends,
    name_labels,
    refuse_quantised,
)
from lorada.inference.graph_card import card_texts
from lorada.inference.load import Run, load_run
from lorada.runs.folder import refuse_target
from lorada.runs.recipe import RECIPE_FILE, saved_recipe
from lorada.support.errors import full_disk_in_one_line, out_of_memory
from lorada.support.files import atomic_path
from lorada.support.row_sources import HEADED
from lorada.training.model_card import front_matter, licence_of, write_text
from lorada.training.models.adapters import task_type
from lorada.training.models.candidate_scores import accepted, positions_of
from lorada.tuners.lmam import map_configs
from lorada.tuners.switching import switched_off

Inputs = dict[str, Any]

# The largest difference, as a share of the largest logit. In fp32 the sums of both have errors of
# some 1e-6 of that; a part that is missing or in the wrong place is off by its own effect.
TOLERANCE = 1e-4
PAST = 2  # tokens in the cache of the traced example: no sliding window cuts them
STEPS = 3  # tokens of each text that a decoder reads one by one
SHORT = 12  # tokens of texts that are short
BEYOND = 8  # tokens of the longest text beyond the longest map
# The free axes of inputs and outputs, by the beginnings of their names.
AXES = {
    "input_ids": ("batch", "tokens"),  # the new tokens
    "attention_mask": ("batch", "past + tokens"),  # 0 for padding, those of the cache too
    "token_type_ids": ("batch", "tokens"),  # 1 for the second text of a pair
    "position_ids": ("batch", "tokens"),  # for each new token, the number of tokens before it
    "input.cache": ("batch", None, "past", None),  # keys or values of a layer, by head
    "logits": ("batch", "tokens", None),  # a head's are (batch, classes)
    "output.cache": ("batch", None, "past + tokens", None),
}


def export_graph(folder: Path, target: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Write the finished run in ``folder`` as an ONNX graph in fp32, and compare it with torch.

    The arguments are those of ``export``.

    Returns:
        What the model card says: opset, inputs and outputs, the parts, and the ``difference`` from
        the logits of torch, the ``effect`` of the adapter on them and the ``largest``.

    Raises:
        ValueError: as ``export`` does, for a model or part that cannot be exported, or if the graph
            computes something else than torch.
        OSError: if the disk is full; in all cases the target is then not there.
    """
    refuse_target(folder, target)
    trust = {"trust_remote_code": trust_remote_code}
    recipe = saved_recipe(folder / RECIPE_FILE, **trust)
    run = load_run(folder, **trust, unquantised=True)
    refuse_quantised(run)
    if run.kind == "encoder_decoder":
        raise ValueError(
            f"{recipe.model} is an encoder–decoder ({run.config.model_type}), which cannot be "
            "exported as one graph: export the model without --format"
        )
    run.model.float().cpu()
    cached = run.form not in HEADED
    with refused_if_impossible(run.model):
        texts, logits, effect = expected_of(run, cached=cached)
        largest = max(float(x.abs().max()) for x in logits)
    try:
        model, merged, left = merge(run)
    except ValueError:  # OMoE: then the others stay beside them too
        model, merged, left = run.model, [], kinds(run.model)
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    name_labels(base, run.labels)
    name_ends(base, run)
    with full_disk_in_one_line(target, AGAIN), atomic_path(target) as fresh:
        with refused_if_impossible(base):
            example = example_inputs(base, texts[0], cached=cached)
            program = save_graph(base, example, fresh)
            difference = difference_of(fresh, texts, logits, example.get("cache"), **trust)
        refuse_different(difference, largest)
        if base.can_generate():
            base.generation_config.save_pretrained(fresh)
        run.tokenizer.save_pretrained(fresh)
        copy_licence(recipe.model, fresh)
        written = {
            "folder": str(target), "format": "onnx", **program,
            "merged": merged, "adapter": left, "labels": list(run.labels), "dtype": "float32",
            "difference": difference, "effect": effect, "largest": largest,
            "license": licence_of(recipe.model).get("license"),
        }  # fmt: skip
        title = f"{recipe.model} after {recipe.method}, as a graph"
        task = task_type(base.config, classifies=not cached)
        metadata = front_matter(recipe, "onnx", task)
        ends = end_tokens(run) if cached else None
        ended = ends_texts(run.tokenizer)
        texts_of_card = card_texts(written, ends, ended=ended)
        write_text(fresh, recipe, metadata, title=title, **texts_of_card)
        refuse_target(folder, target)  # again, as somebody may have put files there meanwhile
    return written


def refuse_different(difference: float, largest: float) -> None:
    """Refuse a graph whose logits differ from torch's by more than rounding; a NaN is none."""
    if not difference <= TOLERANCE * largest:
        raise ValueError(
            f"the graph computes something else than torch, so it was not written: logits differ "
            f"by up to {difference:.2g}, and rounding explains {TOLERANCE * largest:.2g}; export "
            "the model without --format"
        )


@contextmanager
def refused_if_impossible(model: Any) -> Iterator[None]:
    """Turn an error of an exporter or a runtime into one line, but not a lack of memory or room."""
    quiet = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # Drop what the exporters print and log; they end with an error if something is wrong.
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    except Exception as error:  # of any kind, as each model fails in its own way
        if isinstance(error, OSError) or out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"transformers {transformers.__version__} cannot export this {model.config.model_type} "
            f"model to ONNX ({type(error).__name__}: {reason}): export it without --format"
        ) from error
    finally:
        logging.disable(quiet)


def save_graph(model: PreTrainedModel, example: Inputs, fresh: Path) -> dict[str, Any]:
    """Trace a model with an example of its inputs, and write its graph and config into a folder.

    Returns ``opset``, ``inputs`` and ``outputs`` of the graph: name → type and shape.
    """
    from transformers import exporters

    free = torch.export.Dim.DYNAMIC  # not AUTO: an error if the model would serve one size only
    sizes: dict[str, Any] = {name: {0: free, 1: free} for name in example}
    if "cache" in example:
        sizes["cache"] = [{0: free, 2: free}] * (2 * len(example["cache"].layers))
    # onnxruntime optimises a graph when it loads it; onnxscript's optimiser had not ended after
    # six minutes (processor time) for 30 layers.
    config = exporters.OnnxConfig(dynamic_shapes=sizes, optimize=False)
    graph = exporters.OnnxExporter().export(model, dict(example), config)
    program: Any = graph.program
    inputs, outputs = map(_named, (program.graph.inputs, program.graph.outputs))
    for node in program.graph.all_nodes():
        node.metadata_props.clear()  # the lines of Python that each operation comes from
    graph.save_pretrained(fresh)
    return {"opset": program.opset_imports[""], "inputs": inputs, "outputs": outputs}


def _named(values: Iterable[Any]) -> dict[str, tuple[str, list[int | str]]]:
    """Give the free axes of a graph's values the names in ``AXES``; return types and shapes."""
    from onnx_ir import Shape

    found = {}
    for value in values:
        axes = next(axes for start, axes in AXES.items() if value.name.startswith(start))
        both = zip(value.shape, axes, strict=False)
        sizes = [size if isinstance(size, int) else str(axis) for size, axis in both]
        value.shape = Shape(sizes)
        found[value.name] = value.dtype.name.lower(), sizes
    return found


def expected_of(run: Run, *, cached: bool) -> tuple[list[Inputs], list[Tensor], float | None]:
    """Batches of random tokens, their logits in torch, and how far the adapter changes a logit.

    Logits are those where there are tokens. A model without an adapter has no change: None.
    """
    texts = list(_texts(run, cached=cached))
    model: Any = partial(run.model, use_cache=True) if cached else run.model

    @torch.no_grad()
    def logits() -> list[Tensor]:
        return [_logits(model, inputs, None, cached=cached) for inputs in texts]

    found = logits()
    layers = [m for m in run.model.modules() if isinstance(m, BaseTunerLayer)]
    if not layers:
        return texts, found, None
    with switched_off(layers):
        return texts, found, _difference(found, logits())


def example_inputs(model: PreTrainedModel, text: Inputs, *, cached: bool) -> Inputs:
    """Inputs to trace a model with: a text, for a decoder the last tokens of it behind a cache.

    All sizes differ from each other, since a trace takes equal ones for one.
    """
    if not cached:
        return text
    with torch.no_grad():
        cache = model(**_part(text, 0, PAST), use_cache=True).cache
    # Its layers keep all tokens; under a sliding window the mask hides them.
    plain = DynamicCache([(layer.keys, layer.values) for layer in cache.layers])
    return {**_part(text, PAST, SHORT), "cache": plain}


def difference_of(
    folder: Path, texts: list[Inputs], expected: list[Tensor], cache: Any, **options: Any
) -> float:
    """The largest difference of two logits, one of the graph in a folder and one of torch.

    ``cache`` is that of the example that it was traced with; None for a graph without one.
    """
    import onnxruntime
    from transformers.exporters import ExportedModel

    session = onnxruntime.SessionOptions()
    session.log_severity_level = 3  # errors; it warns of what it keeps
    graph = ExportedModel.from_pretrained(str(folder), session_options=session, **options)
    found = []
    for inputs in texts:
        size = len(inputs["input_ids"]), -1, 0, -1
        empty = None if cache is None else DynamicCache([
            tuple(x[:1, :, :0].expand(size) for x in (layer.keys, layer.values))
            for layer in cache.layers
        ])  # fmt: skip
        found.append(_logits(graph, inputs, empty, cached=cache is not None))
    return _difference(found, expected)


def _part(inputs: Inputs, start: int, stop: int) -> Inputs:
    """The tokens from ``start`` to ``stop`` of whole texts, behind those before them."""
    # Contiguous: a trace would take the strides of a slice for a condition on the sizes.
    return {
        name: x[:, (0 if name == "attention_mask" else start) : stop].contiguous()
        for name, x in inputs.items()
    }


def _logits(call: Callable[..., Any], inputs: Inputs, cache: Any, *, cached: bool) -> Tensor:
    """The logits of texts that are read whole, or at first in part and then token by token."""
    if not cached:
        whole: Tensor = call(**inputs).logits
        return whole.float()
    mask, found = inputs["attention_mask"], []
    first = max(mask.shape[1] - STEPS, 1)
    for start, stop in pairwise([0, *range(first, mask.shape[1] + 1)]):
        output = call(**_part(inputs, start, stop), cache=cache)
        found.append(output.logits.float())
        cache = output.cache
    return torch.cat(found, 1)[mask.bool()]


def _texts(run: Run, *, cached: bool) -> Iterator[Inputs]:
    """Batches of random tokens: short, as long as the longest map, and longer."""
    base: Any = run.model.get_base_model() if isinstance(run.model, PeftModel) else run.model
    special = {*run.tokenizer.all_special_ids, base.config.pad_token_id}
    known = min(len(run.tokenizer), base.config.get_text_config().vocab_size)
    tokens = torch.tensor([i for i in range(known) if i not in special])
    generator = torch.Generator().manual_seed(0)
    paired = not cached and getattr(base.config, "type_vocab_size", 0) > 1
    paired = paired and "token_type_ids" in run.tokenizer.model_input_names
    length = max([SHORT, *(config.length for config in map_configs(run.model))])
    for batch, count in ((3, SHORT), (1, length), (2, length + BEYOND), (1, 1)):
        count = min(count, context_of(base.config) or count)
        chosen = torch.randint(len(tokens), (batch, count), generator=generator)
        pads = count * torch.arange(batch)[:, None] // (batch + 1)  # of each row
        mask = (torch.arange(count) >= pads).long()  # a decoder's prompts must end alike
        if not cached and batch == 3:  # texts for a head are padded on either side
            mask = mask.flip(1)
        positions = accepted(base, position_ids=positions_of(mask)) if cached else {}
        ids = torch.where(mask.bool(), tokens[chosen], run.tokenizer.pad_token_id or 0)
        types = {"token_type_ids": ids % 2} if paired else {}  # any 0 and 1 will do
        yield {"input_ids": ids, "attention_mask": mask, **types, **positions}


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    each = [(one - other).abs().max() for one, other in zip(found, expected, strict=True)]
    return float(torch.stack(each).max())  # a NaN of any batch stays
