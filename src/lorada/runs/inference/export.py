"""``lorada export RUN --merge DIR``: writes a run as one model folder, with its parts merged.

Maps, bottlenecks and a pooling cannot be merged into the base's weights; every other part can. DIR
gets the base with those merged, and an adapter of the rest beside it, if there is any.
transformers loads both from DIR once lorada has been imported, and ends in an error otherwise.
Without such an adapter DIR is a plain model, which does not need lorada.
"""

import logging
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from lorada.runs.folder.folder import refuse_target
from lorada.runs.folder.model_card import write_model_card
from lorada.runs.inference.load import Run, load_run
from lorada.runs.models.adapters import task_type
from lorada.runs.models.pooling import BESIDE, pooling_of, save_beside
from lorada.support.errors import full_disk_in_one_line
from lorada.support.files import atomic_path
from lorada.tasks.rows import HEADED
from lorada.tuners.pooling import PoolingConfig

logger = logging.getLogger(__name__)


def export(folder: Path, target: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Write the finished run in ``folder`` as a model, with every part merged that can be.

    ``target`` is the folder to write: new or empty, and not inside the run.

    Returns:
        ``folder``, ``merged`` and ``adapter`` (kinds of parts), and ``labels`` of a classifier.

    Raises:
        ValueError: if the run is not finished, the target is not free, or the base is quantised.
        OSError: if the disk is full; then the target is not there.
    """
    refuse_target(folder, target)
    run = load_run(folder, trust_remote_code=trust_remote_code)
    if getattr(run.model.config, "quantization_config", None) is not None:
        raise ValueError(
            f"{run.recipe.model} is quantised, and merging would round its weights again: train "
            "on the same model unquantised, or load base and adapter as they are"
        )
    parts = kinds(run.model)
    model = run.model.merge_weights() if isinstance(run.model, PeftModel) else run.model
    left = kinds(model)
    merged = [kind for kind in parts if kind not in left]
    if merged and run.recipe.dtype in ("bfloat16", "float16"):
        logger.warning(
            "the base is %s, so merged weights are rounded to that, and the exported model is not "
            "exactly the trained one: score both",
            run.recipe.dtype,
        )
    again = "Free space, then run the command again"
    with full_disk_in_one_line(target, again), atomic_path(target) as fresh:
        _write(model, run, fresh)
        task = task_type(run.model.config, classifies=run.form in HEADED)
        write_model_card(fresh, run.recipe, merged, left, task)
        refuse_target(folder, target)  # again, as somebody may have put files there meanwhile
    return {
        "folder": str(target),
        "merged": merged,
        "adapter": left,
        "labels": list(run.labels),
    }


def kinds(model: PeftModel | PreTrainedModel) -> list[str]:
    """The PEFT types of the parts in a model's adapter; empty for a model without one."""
    if not isinstance(model, PeftModel):
        return [] if pooling_of(model) is None else [PoolingConfig.registered_as.value]
    parts = model.peft_config["default"].parts
    return [str(getattr(part.peft_type, "value", part.peft_type)) for part in parts]


def _write(model: PeftModel | PreTrainedModel, run: Run, fresh: Path) -> None:
    """Write the model, its tokenizer, and the adapter of the parts that could not be merged."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if run.labels:
        base.config.id2label = dict(enumerate(run.labels))
        base.config.label2id = {label: i for i, label in enumerate(run.labels)}
    if isinstance(model, PeftModel):
        model.peft_config["default"].base_model_name_or_path = BESIDE
        # The exported base has the embeddings, so PEFT need not compare them with another base's.
        model.save_pretrained(fresh, save_embedding_layers=False)
        base = model.unload()
    base.save_pretrained(fresh)
    save_beside(base, fresh)
    run.tokenizer.save_pretrained(fresh)
