"""Saves the trained weights of a training, and collects the fields of its ``result.json``."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_WRAPPED_MODULE
from transformers import Trainer

from lorada.data.answers import answer_limit
from lorada.data.dataset import context_of
from lorada.runs.folder import TRAINED_FILE
from lorada.runs.result import hardware, versions
from lorada.support.files import atomic_path
from lorada.support.processes import process_count
from lorada.support.row_sources import file_names
from lorada.training.model_card import write_card, write_model_card
from lorada.training.models.adapters import fold_prefixes, parameter_counts
from lorada.training.models.origin import weights_fingerprint
from lorada.training.models.pooling import save_beside
from lorada.training.models.trained_part import save_part
from lorada.training.prepare import PreparedTraining
from lorada.training.setup import Setup


def all_weights(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """All weights of a model that is sharded over processes; None if every process has them all.

    All processes must call this.
    """
    if not trainer.is_fsdp_enabled:
        return None
    weights: dict[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights


def save_model(
    setup: Setup, weights: dict[str, torch.Tensor] | None, prepared: PreparedTraining
) -> None:
    """Write the adapter, the trained part or the fully trained model into the run's folder.

    It is written into a scratch folder and then moved, so it is never there half written.
    ``weights`` is what ``all_weights`` returned.
    """
    model, recipe = setup.model, prepared.recipe
    if weights is not None:
        _unshard(model, weights)
    if setup.scale is not None:
        setup.scale.fold(model)
    if setup.saved is not None:
        with atomic_path(Path(recipe.output) / TRAINED_FILE) as fresh:
            save_part(fresh, model, setup.saved, recipe.model)
        return
    adapted = isinstance(model, PeftModel)
    if adapted:
        fold_prefixes(model)
    with atomic_path(Path(recipe.output) / ("adapter" if adapted else "model")) as fresh:
        model.save_pretrained(fresh)
        if adapted:
            write_card(fresh, recipe, model.peft_config["default"])
        else:
            prepared.tokenizer.save_pretrained(fresh)
            if recipe.pooling is not None:
                save_beside(model, fresh)
                write_model_card(fresh, recipe, [], ["POOLING"], "SEQ_CLS", command="train")


def _unshard(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Replace the shards of this process's model by whole weights."""
    whole: dict[int, nn.Parameter] = {}  # by the shard's id, so that tied weights stay tied
    for path, module in model.named_modules():
        for name, shard in list(module.named_parameters(recurse=False)):
            key = f"{path}.{name}".removeprefix(".").replace(f"{_CHECKPOINT_WRAPPED_MODULE}.", "")
            parameter = nn.Parameter(weights[key], requires_grad=shard.requires_grad)
            setattr(module, name, whole.setdefault(id(shard), parameter))


def training_result(prepared: PreparedTraining, setup: Setup, peak: int) -> dict[str, Any]:
    """The fields of ``result.json``, without those that ``train`` adds; ``peak`` is in bytes.

    The weights must be saved before.
    """
    recipe, rows, plan = prepared.recipe, prepared.rows, prepared.plan
    state, base, scale = setup.trainer.state, setup.base, setup.scale
    shown = ["step", "loss", "eval_loss", *setup.measured, "relative_norm", "grad_norm"]
    history = [
        {key: entry[key] for key in shown if key in entry}
        for entry in state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
    counts = parameter_counts(setup.model, base.total, base.head, plan.with_head)
    effects = [entry["relative_norm"] for entry in history if "relative_norm" in entry]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    limit = answer_limit(
        rows, recipe, prepared.tokenizer, prepared.kind, context_of(base.model.config)
    )
    run = Path(recipe.output)
    saved = [run / TRAINED_FILE, *(run / "adapter").rglob("*"), *(run / "model").rglob("*")]
    return {
        "recipe": recipe.model_dump(),
        "method": recipe.method,
        "model": recipe.model,
        "base_sha256": weights_fingerprint(recipe.model),
        "task": recipe.task,
        "form": rows.form,
        "labels": list(rows.labels),
        "metric": None if prepared.metric is None else asdict(prepared.metric),
        "max_new_tokens": recipe.max_new_tokens or limit,
        "label_type": rows.label_type,
        "learned_scores": None if scale is None else {"mean": scale.mean, "sd": scale.sd},
        "pairs": all(row.get("text_pair") for row in rows.rows),
        "seed": setup.trainer.args.seed,
        "data": {
            "file": file_names(rows.path),
            "rows": len(rows.rows),
            "sha256": rows.fingerprint,
        },
        "versions": versions(),
        "hardware": hardware(),
        "processes": process_count(),
        "parameters": {**counts, "paper": None},
        "settings_from": plan.settings_from,
        "adapter_bytes": sum(path.stat().st_size for path in saved if path.is_file()),
        "steps": state.global_step,
        "peak_memory_bytes": peak,
        "train_loss": losses[-1] if losses else None,
        "relative_norm": effects[-1] if effects else None,
        "metrics": {},
        "unparsable": None,
        "history": history,
    }
