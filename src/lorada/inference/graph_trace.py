"""Makes an ONNX graph of a model with ``transformers.exporters``, and describes what it takes.

It is written as ``model.onnx`` and ``model.onnx.data``, and takes any number of texts and tokens.
"""

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from lorada.inference.graph_inputs import Inputs, free_sizes
from lorada.support.errors import needs_extra, out_of_memory

# The free axes of the inputs, by the beginnings of their names.
AXES = {
    "input_ids": ("batch", "tokens"),
    "attention_mask": ("batch", "past + tokens"),
    "position_ids": ("batch", "tokens"),
    "input.cache": ("batch", None, "past", None),
}


def need_packages() -> None:
    """Import what ONNX needs.

    Raises:
        ImportError: naming the extra, if a package is missing.
    """
    with needs_extra("onnx"):
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        from transformers import exporters  # noqa: F401


@contextmanager
def refused_if_impossible(model: PreTrainedModel) -> Iterator[None]:
    """Turn an error of an exporter or of a runtime into one line.

    Raises:
        ValueError: in its place. A lack of memory or of room on the disk passes.
    """
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:  # of any kind, as each model fails in its own way
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"transformers {transformers.__version__} cannot export this {model.config.model_type} "
            f"model to ONNX ({type(error).__name__}: {reason}): export it without --format"
        ) from error


def traced(model: PreTrainedModel, example: Inputs) -> Any:
    """The model as transformers' ``ExportedModel``, traced with an example of its inputs."""
    from transformers import exporters

    with _quiet():
        # onnxruntime optimises a graph when it loads it; onnxscript's optimiser had not ended after
        # six minutes (processor time) for 30 layers.
        config = exporters.OnnxConfig(dynamic_shapes=free_sizes(example), optimize=False)
        graph = exporters.OnnxExporter().export(model, dict(example), config)
    _tidy(graph.program)
    return graph


def loaded(folder: Path, *, trust_remote_code: bool) -> Any:
    """The graph in a folder, in onnxruntime."""
    import onnxruntime
    from transformers.exporters import ExportedModel

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    with _quiet():
        options["session_options"] = onnxruntime.SessionOptions()
        options["session_options"].log_severity_level = 3  # errors; it warns of what it keeps
        return ExportedModel.from_pretrained(str(folder), **options)


def interface(graph: Any) -> dict[str, Any]:
    """``opset``, ``inputs`` and ``outputs`` of a graph: name → type and shape."""
    program = graph.program
    inputs, outputs = (
        {v.name: (v.dtype.name.lower(), [_size(n) for n in v.shape]) for v in values}
        for values in (program.graph.inputs, program.graph.outputs)
    )
    return {"opset": program.opset_imports[""], "inputs": inputs, "outputs": outputs}


def _tidy(program: Any) -> None:
    """Give the free axes of an ONNX graph the names in ``AXES``, and forget where it was traced."""
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
        node.metadata_props.clear()  # the lines of Python that each operation comes from


def _size(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size.value)


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
