"""What a training leaves behind at its end: the adapter or the model, and the result."""

from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_WRAPPED_MODULE
from transformers import Trainer

from lorada.data.scoring.commonest_answer import repeated_answer
from lorada.runs.machine import hardware, versions
from lorada.runs.result import LearnedRows, ParameterCounts, RunResult, ScoringMetric, StoredRecipe
from lorada.support.files import atomic_path
from lorada.support.processes import process_count
from lorada.support.row_sources import file_names
from lorada.training.guessing_loss import guessing_loss
from lorada.training.model_card import write_card, write_model_card
from lorada.training.models.adapters import (
    fold_prefixes,
    parameter_counts,
    part_kinds,
    save_pooling_beside,
)
from lorada.training.setup import Setup


def all_weights(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """All weights of a model that processes share; None if each has all. All must call it."""
    if not trainer.is_fsdp_enabled:
        return None
    weights: dict[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights


def save_model(setup: Setup, weights: dict[str, torch.Tensor] | None) -> None:
    """Write the adapter or the trained model into the run's folder, whole or not at all.

    ``weights`` is what ``all_weights`` returned.

    A head of scores is first changed to answer in the unit of the rows, and gathered weights
    replace shards.
    """
    model = setup.model
    if weights is not None:
        _unshard(model, weights)
    if setup.score_scale is not None:
        setup.score_scale.fold(model)
    if isinstance(model, PeftModel):
        _save_adapter(setup, model)
    else:
        _save_trained_base(setup)


def _save_adapter(setup: Setup, model: PeftModel) -> None:
    """Write the adapter and its model card into the run's folder."""
    recipe = setup.prepared.recipe
    # The network that makes a prefix is for training only, so it is not saved.
    fold_prefixes(model)
    with atomic_path(Path(recipe.output) / "adapter") as folder:
        model.save_pretrained(folder)
        # PEFT has written a card of its own, which ours replaces.
        write_card(folder, recipe, model.peft_config["default"], model.config)


def _save_trained_base(setup: Setup) -> None:
    """Write a fully trained model with its tokenizer, and beside it the pooling if it has one."""
    recipe = setup.prepared.recipe
    with atomic_path(Path(recipe.output) / "model") as folder:
        setup.model.save_pretrained(folder)
        setup.prepared.tokenizer.save_pretrained(folder)
        if recipe.pooling is not None:
            save_pooling_beside(setup.model, folder)
            write_model_card(folder, recipe, [], ["POOLING"], "SEQ_CLS")


def _unshard(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Replace the shards of this process's model by whole weights.

    Args:
        model: changed in place.
        weights: whole tensors by the names of parameters, as accelerate gathers them.
    """
    whole_by_shard: dict[int, nn.Parameter] = {}  # by the shard's id, so tied weights stay tied
    for path, module in model.named_modules():
        for name, shard in list(module.named_parameters(recurse=False)):
            key = f"{path}.{name}".removeprefix(".")
            # Layers that compute their activations again are wrapped, which the keys do not show.
            key = key.replace(f"{_CHECKPOINT_WRAPPED_MODULE}.", "")
            parameter = nn.Parameter(weights[key], requires_grad=shard.requires_grad)
            setattr(module, name, whole_by_shard.setdefault(id(shard), parameter))


def training_result(
    setup: Setup, peak_memory_bytes: int, *, wall_time_s: float, resumed_from: str | None
) -> RunResult:
    """The result of a training that has ended and is saved; nothing is scored yet.

    Args:
        setup: the training.
        peak_memory_bytes: of the process with the largest.
        wall_time_s: seconds that it took.
        resumed_from: the name of the checkpoint that it went on from, if it did.
    """
    prepared, base = setup.prepared, setup.base
    recipe, rows, plan = prepared.recipe, prepared.rows, prepared.plan
    scale = setup.score_scale
    history = _history(setup)
    counts = parameter_counts(setup.model, base.total, base.head, plan.with_head)
    metric = prepared.metric
    scoring_metric = None
    if metric is not None:
        scoring_metric = ScoringMetric(name=metric.name, reason=metric.reason)
    learned_scores = None if scale is None else {"mean": scale.mean, "sd": scale.sd}
    learned_rows = LearnedRows(
        file=file_names(rows.path), rows=len(rows.rows), sha256=rows.fingerprint
    )
    # The file has the fields in this order.
    return RunResult(
        recipe=StoredRecipe(**recipe.model_dump()),
        method=recipe.method,
        model=recipe.model,
        # transformers notes the commit of the hub in this private attribute of a config.
        base_revision=getattr(prepared.config, "_commit_hash", None),  # on the hub
        task=recipe.task,
        form=rows.form,
        labels=list(rows.labels),
        metric=scoring_metric,
        max_new_tokens=recipe.max_new_tokens or prepared.max_answer_tokens,
        commonest_answer=repeated_answer(rows),
        learned_scores=learned_scores,
        pairs=all(row.get("text_pair") for row in rows.rows),
        seed=setup.trainer.args.seed,
        data=learned_rows,
        versions=versions(),
        hardware=hardware(),
        processes=process_count(),
        parameters=ParameterCounts(**counts, paper=None),
        settings_from=plan.settings_from,
        started_from=recipe.from_adapter,
        adapter_parts=part_kinds(setup.model),
        adapter_bytes=_saved_bytes(Path(recipe.output)),
        steps=setup.trainer.state.global_step,
        seconds_per_step=setup.step_timer.seconds_per_step,
        peak_memory_bytes=peak_memory_bytes,
        train_loss=_last_value(history, "loss"),
        relative_norm=_last_value(history, "relative_norm"),
        guessing_loss=_held_out_guessing_loss(setup),
        metrics={},
        unparsable=None,
        history=history,
        wall_time_s=wall_time_s,
        resumed_from=resumed_from,
    )


def _history(setup: Setup) -> list[dict[str, float | None]]:
    """The log lines of the training that have a loss, each with what a reader needs of it."""
    kept_keys = ["step", "loss", "eval_loss", *setup.metric_names, "relative_norm", "grad_norm"]
    history = []
    for log_line in setup.trainer.state.log_history:
        if "loss" in log_line or "eval_loss" in log_line:
            history.append({key: log_line[key] for key in kept_keys if key in log_line})
    return history


def _last_value(history: list[dict[str, float | None]], key: str) -> float | None:
    """The value of the last log line that has one; None if none has."""
    values = [log_line[key] for log_line in history if key in log_line]
    return values[-1] if values else None


def _saved_bytes(run: Path) -> int:
    """The size of the adapter or the model in a run's folder."""
    paths = [*(run / "adapter").rglob("*"), *(run / "model").rglob("*")]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _held_out_guessing_loss(setup: Setup) -> float | None:
    """What guessing costs on the held-out rows as the Trainer has them; None without such rows."""
    held_out = setup.trainer.eval_dataset
    if held_out is None:
        return None
    return guessing_loss(setup.prepared.rows.form, held_out)
