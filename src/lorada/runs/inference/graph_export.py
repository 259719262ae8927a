"""``lorada export RUN DIR --format onnx``: writes a run as a graph of its whole computation.

The graph holds the base, what is merged into it, and what cannot be merged: maps, bottlenecks,
prefixes, gains. Whoever runs it needs neither torch nor lorada. It is made by
``transformers.exporters``, and DIR is kept only if the graph computes what torch does.
"""

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import transformers
from peft import PeftModel
from transformers import PreTrainedModel

from lorada.runs.folder.card_metadata import licence_of
from lorada.runs.folder.folder import refuse_target
from lorada.runs.folder.graph_card import write_graph_card
from lorada.runs.folder.result import read_result
from lorada.runs.inference.export import AGAIN, copy_licence, merge
from lorada.runs.inference.graph_check import TOLERANCE, Check, compare, expected_of
from lorada.runs.inference.graph_inputs import Inputs, example_inputs, free_sizes
from lorada.runs.inference.load import Run, load_run
from lorada.runs.models.adapters import task_type
from lorada.runs.prepare import Prepared, prepare
from lorada.runs.recipe import RECIPE_FILE, saved_recipe
from lorada.support.errors import full_disk_in_one_line, needs_extra
from lorada.support.files import atomic_path
from lorada.tasks.rows import HEADED

# Parts that stay beside the merged weights and were checked in graphs (tests/runs/
# test_export_onnx.py), of a decoder with its cache and of an encoder with a head.
CHECKED = ("LMAM", "BOTTLENECK", "PREFIX", "GAIN", "OMOE", "POOLING")
# The axes of the inputs, by the start of their names.
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
        ``folder``, ``format``, ``opset``, ``inputs`` and ``outputs`` (name → type and shape),
        ``merged`` and ``adapter`` (kinds of parts), ``labels`` of a classifier, ``difference``,
        ``effect`` and ``largest`` as in ``Check``, and ``license`` as in ``export``.

    Raises:
        ValueError: as ``export`` does, for a model or part that cannot be exported, or if the graph
            computes something else than torch.
        ImportError: if a package of the extra is missing.
        OSError: if the disk is full; in all cases the target is then not there.
    """
    refuse_target(folder, target)
    with needs_extra("onnx"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        from transformers import exporters  # noqa: F401
    recipe = saved_recipe(folder / RECIPE_FILE, trust_remote_code=trust_remote_code)
    _refuse_kind(prepare(recipe))
    run = _in_fp32(load_run(folder, trust_remote_code=trust_remote_code))
    cached = run.form not in HEADED
    expected = expected_of(run, cached=cached)
    model, merged, left = merge(run)
    refuse_unchecked(left)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if run.labels:
        base.config.id2label = dict(enumerate(run.labels))
        base.config.label2id = {label: i for i, label in enumerate(run.labels)}
    example = example_inputs(base, int(expected.texts[0]["input_ids"].amax()), cached=cached)
    graph = _traced(base, example)
    with full_disk_in_one_line(target, AGAIN), atomic_path(target) as fresh:
        graph.save_pretrained(fresh)
        if cached:
            base.generation_config.save_pretrained(fresh)
        run.tokenizer.save_pretrained(fresh)
        check = compare(_loaded(fresh, trust_remote_code), expected, example.get("cache"))
        refuse_different(check)
        copy_licence(recipe.model, fresh)
        written = {
            "folder": str(target),
            "format": "onnx",
            **_interface(graph.program),
            "merged": merged,
            "adapter": left,
            "labels": list(run.labels),
            "dtype": "float32",
            **asdict(check),
            "license": licence_of(recipe.model).get("license"),
        }
        task = task_type(base.config, classifies=not cached)
        write_graph_card(fresh, recipe, task, read_result(folder), written, _ends(base))
        refuse_target(folder, target)  # again, as somebody may have put files there meanwhile
    return written


def refuse_unchecked(left: list[str]) -> None:
    """Refuse parts that nobody has compared in a graph.

    Raises:
        ValueError: naming the first.
    """
    for kind in left:
        if kind not in CHECKED:
            raise ValueError(
                f"{kind} parts cannot be exported as a graph (checked are {', '.join(CHECKED)}): "
                "export the model without --format"
            )


def refuse_different(check: Check) -> None:
    """Refuse a graph that computes something else than torch.

    Raises:
        ValueError: with the difference.
    """
    if not check.passed:
        raise ValueError(
            f"the graph computes something else than torch, so it was not written: logits differ "
            f"by up to {check.difference:.2g}, and rounding explains "
            f"{TOLERANCE * check.largest:.2g}; export the model without --format"
        )


def _refuse_kind(prepared: Prepared) -> None:
    """Refuse a model of a kind that cannot be exported.

    Raises:
        ValueError: for an encoder–decoder.
    """
    if prepared.kind == "encoder_decoder":
        raise ValueError(
            f"{prepared.recipe.model} is an encoder–decoder ({prepared.config.model_type}), which "
            "cannot be exported as one graph: export the model without --format"
        )


def _in_fp32(run: Run) -> Run:
    """A run with its model in fp32 on the CPU, where graphs are made and compared."""
    run.model.float().cpu()
    recipe = run.recipe.model_copy(update={"dtype": "float32"})
    return replace(run, recipe=recipe)


def _traced(model: PreTrainedModel, example: Inputs) -> Any:
    """The model as transformers' ``ExportedModel``.

    Raises:
        ValueError: if it cannot be exported.
    """
    from transformers.exporters import OnnxConfig, OnnxExporter

    try:
        with _quiet():
            config = OnnxConfig(dynamic_shapes=free_sizes(example))
            graph = OnnxExporter().export(model, dict(example), config)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # of any kind, as each model fails in its own way
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"transformers {transformers.__version__} cannot export this {model.config.model_type} "
            f"model to ONNX ({type(error).__name__}: {reason}): export it without --format"
        ) from error
    _name_axes(graph.program)
    return graph


def _loaded(folder: Path, trust_remote_code: bool) -> Any:
    """The graph in a folder, in onnxruntime."""
    from transformers.exporters import ExportedModel

    return ExportedModel.from_pretrained(str(folder), trust_remote_code=trust_remote_code)


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the exporters print and log; they end with an error if something is wrong."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _name_axes(program: Any) -> None:
    """Give the free axes of a graph the names in ``AXES``, in place of those of the trace."""
    from onnx_ir import Shape, SymbolicDim

    names: dict[str, str] = {}
    for value in program.graph.inputs:
        axes = next(axes for start, axes in AXES.items() if value.name.startswith(start))
        names.update(
            (size.value, axis)
            for size, axis in zip(value.shape, axes, strict=True)
            if axis and isinstance(size, SymbolicDim)
        )
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
        node.metadata_props.clear()  # where in this machine's files each operation was traced


def _interface(program: Any) -> dict[str, Any]:
    """The opset of a graph, and the types and shapes of its inputs and outputs."""

    def described(values: Any) -> dict[str, tuple[str, list[int | str]]]:
        return {v.name: (v.dtype.name.lower(), [_size(n) for n in v.shape]) for v in values}

    return {
        "opset": program.opset_imports[""],
        "inputs": described(program.graph.inputs),
        "outputs": described(program.graph.outputs),
    }


def _size(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size.value)


def _ends(model: PreTrainedModel) -> list[int]:
    """The tokens that end a text."""
    config = getattr(model, "generation_config", None) or model.config
    ends = config.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]
