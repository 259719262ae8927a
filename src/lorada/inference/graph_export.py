"""``lorada export RUN DIR --format onnx``: writes a run as a graph of its whole computation.

The graph holds the base, what is merged into it, and what cannot be merged: maps, bottlenecks,
prefixes, gains. Whoever runs it needs neither torch nor lorada. It is made by
``transformers.exporters``, and DIR is kept only if the graph computes what torch does.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from lorada.inference.export import (
    AGAIN,
    copy_licence,
    kinds,
    merge,
    name_labels,
    refuse_quantised,
)
from lorada.inference.graph_card import write_graph_card
from lorada.inference.graph_check import TOLERANCE, Check, compare, expected_of
from lorada.inference.graph_inputs import example_inputs
from lorada.inference.graph_trace import (
    interface,
    loaded,
    need_packages,
    refused_if_impossible,
    traced,
)
from lorada.inference.load import Run, load_run
from lorada.runs.folder.card_metadata import licence_of
from lorada.runs.folder.folder import refuse_target
from lorada.runs.folder.result import read_result
from lorada.runs.models.adapters import task_type
from lorada.runs.prepare import Prepared, prepare
from lorada.runs.recipe import RECIPE_FILE, saved_recipe
from lorada.support.errors import full_disk_in_one_line
from lorada.support.files import atomic_path
from lorada.tasks.rows import HEADED

# Parts that stay beside the merged weights and were checked in graphs (tests/runs/
# test_export_onnx.py), of a decoder with its cache and of an encoder with a head.
CHECKED = ("LMAM", "BOTTLENECK", "PREFIX", "GAIN", "OMOE", "POOLING", "LORA")


def export_graph(folder: Path, target: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Write the finished run in ``folder`` as an ONNX graph in fp32, and compare it with torch.

    Args:
        folder: the folder of the run.
        target: the folder to write: new or empty, and not inside the run.
        trust_remote_code: whether code from the base's repository may run.

    Returns:
        What the model card says: the interface, the parts, and the numbers of the ``Check``.

    Raises:
        ValueError: as ``export`` does, for a model or part that cannot be exported, or if the graph
            computes something else than torch.
        ImportError: if a package of the extra is missing.
        OSError: if the disk is full; in all cases the target is then not there.
    """
    refuse_target(folder, target)
    need_packages()
    recipe = saved_recipe(folder / RECIPE_FILE, trust_remote_code=trust_remote_code)
    _refuse_kind(prepare(recipe))
    run = load_run(folder, trust_remote_code=trust_remote_code, unquantised=True)
    refuse_quantised(run)
    run = _in_fp32(run)
    cached = run.form not in HEADED
    expected = expected_of(run, cached=cached)
    model, merged, left = _merged(run)
    refuse_unchecked(left)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    name_labels(base, run.labels)
    example = example_inputs(base, int(expected.texts[0]["input_ids"].amax()), cached=cached)
    with refused_if_impossible(base):
        graph = traced(base, example)
    about = {
        "folder": str(target),
        "format": "onnx",
        **interface(graph),
        "merged": merged,
        "adapter": left,
        "labels": list(run.labels),
        "dtype": "float32",
    }
    with full_disk_in_one_line(target, AGAIN), atomic_path(target) as fresh:
        _save(graph, base, run, fresh)
        with refused_if_impossible(base):
            again = loaded(fresh, trust_remote_code=trust_remote_code)
            check = compare(again, expected, example.get("cache"))
        refuse_different(check)
        copy_licence(recipe.model, fresh)
        written = {**about, **asdict(check), "license": licence_of(recipe.model).get("license")}
        task = task_type(base.config, classifies=not cached)
        write_graph_card(fresh, recipe, task, read_result(folder), written, _ends(base))
        refuse_target(folder, target)  # again, as somebody may have put files there meanwhile
    return written


def _save(graph: Any, model: PreTrainedModel, run: Run, fresh: Path) -> None:
    """Write the graph, the configs of its model and the tokenizer."""
    graph.save_pretrained(fresh)
    if model.can_generate():
        model.generation_config.save_pretrained(fresh)
    run.tokenizer.save_pretrained(fresh)


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


def _merged(run: Run) -> tuple[PeftModel | PreTrainedModel, list[str], list[str]]:
    """The model as ``merge`` returns it, or as it is if one of its parts cannot be merged."""
    try:
        return merge(run)
    except ValueError:  # gains by the query, OMoE: then the others stay beside them too
        return run.model, [], kinds(run.model)


def _in_fp32(run: Run) -> Run:
    """A run with its model in fp32 on the CPU, where graphs are made and compared."""
    run.model.float().cpu()
    recipe = run.recipe.model_copy(update={"dtype": "float32"})
    return replace(run, recipe=recipe)


def _ends(model: PreTrainedModel) -> list[int]:
    """The tokens that end a text."""
    config = getattr(model, "generation_config", None) or model.config
    ends = config.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]
