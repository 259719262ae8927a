"""``lorada export RUN DIR``: writes a run as one model folder, with its parts merged.

Maps, bottlenecks and a pooling cannot be merged into the base's weights; most other parts can. DIR
gets the base with those merged, and an adapter of the rest beside it, if there is any.
transformers loads both from DIR once lorada has been imported, and ends in an error otherwise.
Without such an adapter DIR is a plain model, which does not need lorada.

``--adapter-only`` writes the adapter and the tokenizer, for a base that is kept elsewhere.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from lorada.inference.can_refill import end_tokens
from lorada.inference.load import Run, load_run, refuse_changed
from lorada.runs.folder import refuse_no_adapter, refuse_target
from lorada.runs.recipe import RECIPE_FILE, saved_recipe
from lorada.runs.result import read_result
from lorada.support.errors import full_disk_in_one_line
from lorada.support.files import atomic_path, json_text
from lorada.support.row_sources import HEADED
from lorada.training.inputs import prepare
from lorada.training.model_card import licence_of, write_card, write_model_card
from lorada.training.models.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BESIDE,
    adapter_config,
    adapter_weights,
    pooling_of,
    save_beside,
    task_type,
)
from lorada.training.models.loading import model_folder
from lorada.tuners.exported_config import mark
from lorada.tuners.pooling import PoolingConfig
from lorada.tuners.stack.merging import UnmergeableError
from lorada.tuners.stack.nesting import named_for_transformers
from lorada.tuners.stack.shared_state import refuse_without_peft_model

logger = logging.getLogger(__name__)

AGAIN = "Free space, then run the command again"
# The texts that a licence may ask to pass on with the weights.
LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def export(
    folder: Path,
    target: Path,
    *,
    dtype: str | None = None,
    shard_size: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Write the finished run in ``folder`` as a model, with every part merged that can be.

    Args:
        folder: the folder of the run.
        target: the folder to write: new or empty, and not inside the run.
        dtype: the dtype of the written base, such as ``bfloat16``; None for that of the run. Parts
            are merged before. An adapter beside the base keeps its own.
        shard_size: the most bytes of a file of weights, such as ``2GB``; None for transformers' own
            limit.
        trust_remote_code: whether code from the base's repository may run.

    Returns:
        ``folder``, ``merged`` and ``adapter`` (kinds of parts), ``labels`` of a classifier,
        ``dtype`` of the base, and ``license`` as the base's card names it, or None.

    Raises:
        ValueError: if the run is not finished, the target is not free, the base is quantised, or
            its weights are too large for ``dtype``.
        OSError: if the disk is full; then the target is not there.
    """
    refuse_target(folder, target)
    run = load_run(folder, trust_remote_code=trust_remote_code, unquantised=True)
    model, merged, left = merge(run)
    # The recipe of a fully trained model that was loaded names the run's own folder.
    recipe = saved_recipe(folder / RECIPE_FILE, trust_remote_code=trust_remote_code)
    with full_disk_in_one_line(target, AGAIN), atomic_path(target) as fresh:
        base = _write(model, run, fresh, dtype, shard_size)
        if left:
            mark(fresh)
        copy_licence(recipe.model, fresh)
        task = task_type(run.model.config, classifies=run.form in HEADED)
        write_model_card(fresh, recipe, merged, left, task)
        refuse_target(folder, target)  # again, as somebody may have put files there meanwhile
    return {
        "folder": str(target),
        "merged": merged,
        "adapter": left,
        "labels": list(run.labels),
        "dtype": str(base.dtype).removeprefix("torch."),
        "license": licence_of(recipe.model).get("license"),
    }


def export_adapter(
    folder: Path, target: Path, *, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Write the adapter of the finished run in ``folder``, and its tokenizer, into ``target``.

    The adapter is written as it is, and names the run's base: by its id on the hub, or by the
    absolute path of its folder.

    Returns:
        ``folder``, ``base``, ``adapter`` (kinds of parts), ``labels`` of a classifier, and
        ``license`` as in ``export``.

    Raises:
        ValueError: if the run is not finished or has no adapter, the target is not free, or the
            base is no longer the one that the adapter was trained on.
        OSError: if the disk is full; then the target is not there.
    """
    refuse_target(folder, target)
    result = read_result(folder)
    recipe = saved_recipe(folder / RECIPE_FILE, trust_remote_code=trust_remote_code)
    refuse_no_adapter(folder)
    source = folder / "adapter"
    config = adapter_config(source)
    adapter_weights(source)  # damaged files are refused here
    refuse_changed(recipe, result, folder)
    if recipe.rope_factor is not None:
        logger.warning(
            "trained with rope_factor=%s, which the base alone does not have: export the whole "
            "model, or give its config the same stretch",
            recipe.rope_factor,
        )
    name = model_folder(recipe.model)
    base = str(Path(name).absolute()) if Path(name).is_dir() else name
    tokenizer = prepare(recipe).tokenizer
    with full_disk_in_one_line(target, AGAIN), atomic_path(target) as fresh:
        fresh.mkdir()
        shutil.copy(source / ADAPTER_WEIGHTS, fresh)
        said = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        said["base_model_name_or_path"] = base
        (fresh / ADAPTER_CONFIG).write_text(json_text(said) + "\n", encoding="utf-8")
        tokenizer.save_pretrained(fresh)
        copy_licence(recipe.model, fresh)
        write_card(fresh, recipe, config, result)
        refuse_target(folder, target)
    return {
        "folder": str(target),
        "base": base,
        "adapter": _names(config.parts),
        "labels": result["labels"],
        "license": licence_of(recipe.model).get("license"),
    }


def kinds(model: PeftModel | PreTrainedModel) -> list[str]:
    """The PEFT types of the parts in a model's adapter; empty for a model without one."""
    if not isinstance(model, PeftModel):
        return [] if pooling_of(model) is None else [PoolingConfig.registered_as.value]
    return _names(model.peft_config["default"].parts)


def _names(parts: list[Any]) -> list[str]:
    return [str(getattr(part.peft_type, "value", part.peft_type)) for part in parts]


def refuse_quantised(run: Run) -> None:
    """Refuse a run whose base is quantised.

    Raises:
        ValueError: for such a base.
    """
    if getattr(run.model.config, "quantization_config", None) is not None:
        raise ValueError(
            f"{run.recipe.model} is quantised, and merging would round its weights again: train "
            "on the same model unquantised, or load base and adapter as they are"
        )


def merge(run: Run) -> tuple[PeftModel | PreTrainedModel, list[str], list[str]]:
    """The model with every part merged that can be, and the kinds of merged and of other parts.

    If a part that wraps modules cannot be merged, none is: with the others merged, it would wrap
    other weights than those it was trained on.
    """
    refuse_quantised(run)
    parts = kinds(run.model)
    try:
        model = run.model.merge_weights() if isinstance(run.model, PeftModel) else run.model
    except UnmergeableError as error:
        refuse_without_peft_model(run.model.peft_config["default"].parts)
        logger.warning("nothing is merged: %s", str(error).partition(": ")[0])
        model = run.model
    left = kinds(model)
    merged = [kind for kind in parts if kind not in left]
    if merged and run.model.dtype in (torch.bfloat16, torch.float16):
        logger.warning(
            "the base is %s, so merged weights are rounded to that, and the exported model is not "
            "exactly the trained one: score both",
            str(run.model.dtype).removeprefix("torch."),
        )
    return model, merged, left


def _write(
    model: PeftModel | PreTrainedModel, run: Run, fresh: Path, dtype: str | None, size: str | None
) -> PreTrainedModel:
    """Write the model, its tokenizer, and the adapter of the parts that could not be merged.

    Returns the base as it was written.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    name_labels(base, run.labels)
    if isinstance(model, PeftModel):
        config = model.peft_config["default"]
        config.base_model_name_or_path = BESIDE
        # The exported base has the embeddings, so PEFT need not compare them with another base's.
        model.save_pretrained(fresh, save_embedding_layers=False)
        # transformers would not find every tensor of a stack under the name that PEFT gives it.
        weights = load_file(fresh / ADAPTER_WEIGHTS)
        named = weights if config.plain else named_for_transformers(config.parts, weights)
        if named.keys() != weights.keys():
            renamed = fresh / "renamed"  # the tensors may still be read from the file
            save_file(named, renamed, {"format": "pt"})
            renamed.replace(fresh / ADAPTER_WEIGHTS)
        base = model.unload()
    name_ends(base, run)
    if dtype is not None:
        _cast(base, getattr(torch, dtype))
    base.save_pretrained(fresh, **({"max_shard_size": size} if size else {}))
    save_beside(base, fresh)
    run.tokenizer.save_pretrained(fresh)
    return base


def name_ends(model: PreTrainedModel, run: Run) -> None:
    """Write what ends an answer of the run into its model's settings for generation."""
    if model.can_generate() and (ends := end_tokens(run)):
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]


def name_labels(model: PreTrainedModel, labels: Sequence[str]) -> None:
    """Write the classes of a classifier into its config."""
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: i for i, label in enumerate(labels)}


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of a model, and say so if that rounds them.

    Raises:
        ValueError: if a weight is too large for the dtype.
    """
    rounded = any(torch.promote_types(p.dtype, dtype) != dtype for p in model.parameters())
    name = str(dtype).removeprefix("torch.")
    for key, weight in model.named_parameters() if rounded else ():
        if weight.abs().max() > torch.finfo(dtype).max:
            raise ValueError(f"{name} cannot hold the weights of {key}: take bfloat16 or float32")
    model.to(dtype)
    if rounded:
        logger.warning(
            "weights are rounded to %s, so the exported model is not exactly the trained one: "
            "score both",
            name,
        )


def copy_licence(model: str, fresh: Path) -> None:
    """Copy the texts of its licence from the folder of a base."""
    for pattern in LICENCE_FILES if Path(model).is_dir() else ():
        for path in Path(model).glob(pattern):
            if path.is_file():
                shutil.copy(path, fresh)
