"""``lorada export RUN DIR --format onnx``: writes a run as a graph of its whole computation.

The graph (``model.onnx``, ``model.onnx.data``) holds the base, what is merged into it, and what
cannot be merged: maps, bottlenecks, prefixes, gains. It takes any number of texts and tokens, and
whoever runs it needs neither torch nor lorada. It is made by ``transformers.exporters``, and DIR is
kept only if the graph computes what torch does.
"""

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import PreTrainedModel

from lorada.inference.export import AGAIN, copy_licence, kinds, merge, name_labels, refuse_quantised
from lorada.inference.graph_card import card_texts
from lorada.inference.graph_check import Inputs, difference_of, example_inputs, expected_of
from lorada.inference.load import load_run
from lorada.runs.folder.card_metadata import front_matter, licence_of
from lorada.runs.folder.folder import refuse_target
from lorada.runs.folder.model_card import write_text
from lorada.runs.folder.result import read_result
from lorada.runs.models.adapters import task_type
from lorada.runs.recipe import RECIPE_FILE, saved_recipe
from lorada.support.errors import full_disk_in_one_line, out_of_memory
from lorada.support.files import atomic_path
from lorada.tasks.rows import HEADED

# The largest difference, as a share of the largest logit. In fp32 the sums of both have errors of
# some 1e-6 of that; a part that is missing or in the wrong place is off by its own effect.
TOLERANCE = 1e-4
# The free axes of the inputs, by the beginnings of their names.
AXES = {
    "input_ids": ("batch", "tokens"),
    "attention_mask": ("batch", "past + tokens"),
    "position_ids": ("batch", "tokens"),
    "input.cache": ("batch", None, "past", None),
}


def export_graph(folder: Path, target: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Write the finished run in ``folder`` as an ONNX graph in fp32, and compare it with torch.

    Args:
        folder: the folder of the run.
        target: the folder to write: new or empty, and not inside the run.
        trust_remote_code: whether code from the base's repository may run.

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
    except ValueError:  # gains by the query, OMoE: then the others stay beside them too
        model, merged, left = run.model, [], kinds(run.model)
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    name_labels(base, run.labels)
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
        metadata = front_matter(recipe, "onnx", task, title, read_result(folder))
        ends = (getattr(base, "generation_config", None) or base.config).eos_token_id
        write_text(fresh, recipe, metadata, title=title, **card_texts(written, ends))
        refuse_target(folder, target)  # again, as somebody may have put files there meanwhile
    return written


def refuse_different(difference: float, largest: float) -> None:
    """Refuse a graph whose logits differ from torch's by more than rounding; a NaN is none.

    Raises:
        ValueError: with the difference.
    """
    if not difference <= TOLERANCE * largest:
        raise ValueError(
            f"the graph computes something else than torch, so it was not written: logits differ "
            f"by up to {difference:.2g}, and rounding explains {TOLERANCE * largest:.2g}; export "
            "the model without --format"
        )


@contextmanager
def refused_if_impossible(model: Any) -> Iterator[None]:
    """Turn an error of an exporter or of a runtime into one line.

    Raises:
        ValueError: in its place. A lack of memory or of room on the disk passes.
    """
    quiet = logging.root.manager.disable
    try:
        # Drop what the exporters print and log; they end with an error if something is wrong.
        logging.disable(logging.WARNING)
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

    Returns:
        ``opset``, ``inputs`` and ``outputs`` of the graph: name → type and shape.
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
    _tidy(program)
    graph.save_pretrained(fresh)
    inputs, outputs = (
        {v.name: (v.dtype.name.lower(), [getattr(n, "value", n) for n in v.shape]) for v in values}
        for values in (program.graph.inputs, program.graph.outputs)
    )
    return {"opset": program.opset_imports[""], "inputs": inputs, "outputs": outputs}


def _tidy(program: Any) -> None:
    """Give the free axes of an ONNX graph the names in ``AXES``, and forget where it was traced."""
    from onnx_ir import Shape, SymbolicDim

    names: dict[str, str] = {}
    for value in program.graph.inputs:
        axes = next(axes for start, axes in AXES.items() if value.name.startswith(start))
        names |= {
            str(size.value): axis for size, axis in zip(value.shape, axes, strict=True) if axis
        }
    known = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names))

    def renamed(size: Any) -> Any:
        if not isinstance(size, SymbolicDim) or size.value is None:
            return size
        text = known.sub(lambda found: names[found[0]], size.value)
        return "past + tokens" if text == "tokens + past" else text

    nodes = list(program.graph.all_nodes())
    for value in [*program.graph.inputs, *(value for node in nodes for value in node.outputs)]:
        if value.shape is not None:
            value.shape = Shape([renamed(size) for size in value.shape])
    for node in nodes:
        node.metadata_props.clear()  # the lines of Python that each operation comes from
