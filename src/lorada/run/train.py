"""``lorada train``: from a recipe to a run folder, on transformers' Trainer.

A run folder holds ``recipe.yaml``, checkpoints while it trains, then ``adapter/`` (or ``model/``),
``loss.png`` and ``result.json``. It is complete when it has a ``result.json``.
"""

import importlib.util
import logging
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from lorada.explain import EffectSize
from lorada.run.adapt import adapt, load_base, parameter_counts, plan_for
from lorada.run.callbacks import SaveOnInterrupt, StopOnNaN
from lorada.run.card import write_card
from lorada.run.data import Rows, collator, encode_rows, fit_context, load_rows
from lorada.run.models import load_tokenizer
from lorada.run.recipe import RECIPE_FILE, Recipe, load_recipe
from lorada.run.result import RESULT_FILE, hardware, peak_memory, versions, write_result
from lorada.tuners import LmamConfig, LoradaConfig

logger = logging.getLogger(__name__)

# Everything a run writes, so that --overwrite removes this and nothing else.
RUN_FILES = (RECIPE_FILE, RESULT_FILE, "loss.png", "adapter", "model", "runs", "trainer_state.json")
CHECKPOINT = re.compile(r"checkpoint-\d+")

DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 3,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.03,
    "logging_steps": 10,
    "save_steps": 100,
    "save_total_limit": 2,
    "remove_unused_columns": False,
    "logging_nan_inf_filter": False,
    "dataloader_pin_memory": torch.cuda.is_available(),
}


@dataclass(frozen=True)
class Trained:
    """What a run left behind."""

    run: Path
    result: dict[str, Any]
    interrupted: bool = False


def train(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, quiet: bool = False
) -> Trained:
    """Train a recipe into its output folder.

    Args:
        recipe: what to train.
        resume: continue from the last checkpoint of that folder, bit for bit.
        overwrite: delete what an earlier run left there.
        quiet: no progress bar.

    Raises:
        ValueError: for a folder that holds a run, or anything in the recipe that does not fit.
        DivergedError: if the loss becomes NaN; checkpoints saved before stay.
    """
    run = Path(recipe.output)
    checkpoint = prepare_folder(run, recipe, resume=resume, overwrite=overwrite)
    rows = load_rows(recipe.data)
    args = training_arguments(recipe, quiet=quiet)
    set_seed(args.seed)
    plan = plan_for(recipe)
    tokenizer = load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code)
    labels = len(rows.labels) if rows.form == "label" else None
    base = load_base(recipe, labels)
    recipe = fit_context(recipe, base.config)
    dataset = encode_rows(rows, recipe, tokenizer)
    model = adapt(base, plan, recipe, labels)
    recipe.save(run)

    effect, interrupt = EffectSize(), SaveOnInterrupt()
    trainer = _trainer(model, args, dataset, rows, tokenizer, [effect, interrupt, StopOnNaN()])
    _give_maps_their_rate(trainer, plan.config)
    started = time.monotonic()
    try:
        _continue(trainer, checkpoint)
    finally:
        interrupt.restore()
    if interrupt.interrupted:
        return Trained(run, {"steps": trainer.state.global_step}, interrupted=True)
    _save_whole(model, tokenizer, run, recipe)
    result = _result(recipe, rows, trainer, effect, time.monotonic() - started)
    write_result(run, result)
    return Trained(run, result)


def _continue(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train to the end, from a checkpoint if there is one."""
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step >= state.max_steps:
            # The run ended between its last checkpoint and its result; the Trainer, asked to go
            # on from there, would take one step too many.
            trainer._load_from_checkpoint(str(checkpoint))
            trainer.state = state
            return
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def prepare_folder(run: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> Path | None:
    """Make sure a run may be written here.

    Returns:
        The checkpoint to continue from, or None to start.

    Raises:
        ValueError: if the folder holds a run and neither resume nor overwrite was asked for, or
            if the run to resume had another recipe.
    """
    if run.exists() and not run.is_dir():
        raise ValueError(f"{run} is a file: choose another --output")
    held = [p for p in run.iterdir() if _belongs_to_run(p)] if run.is_dir() else []
    if not held:
        return None
    if overwrite:
        for path in held:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return None
    if not resume:
        raise ValueError(
            f"{run} already holds a run: use --resume, --overwrite or another --output"
        )
    if (run / RESULT_FILE).is_file():
        raise ValueError(f"{run} is complete: evaluate it, or train again with --overwrite")
    if (run / RECIPE_FILE).is_file():
        _same_recipe(load_recipe(str(run / RECIPE_FILE), [], {}), recipe)
    last = get_last_checkpoint(str(run))
    if last is None:
        logger.warning("%s has no checkpoint yet: starting from the beginning", run)
    return Path(last) if last else None


def _belongs_to_run(path: Path) -> bool:
    return path.name in RUN_FILES or CHECKPOINT.fullmatch(path.name) is not None


def _same_recipe(before: Recipe, now: Recipe) -> None:
    for key, value in now.model_dump().items():
        old = before.model_dump()[key]
        if old != value and key != "output":
            raise ValueError(
                f"the run to resume had {key}={old!r}, not {value!r}: leave it as it was, "
                "or start again with --overwrite"
            )


def training_arguments(recipe: Recipe, *, quiet: bool = False) -> TrainingArguments:
    """The TrainingArguments of a recipe, over our defaults.

    Raises:
        ValueError: for a value that TrainingArguments refuses.
    """
    report = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    if not report:
        logger.warning("no TensorBoard logs: pip install 'lorada[logging]'")
    settings = {**DEFAULTS, "report_to": report, "disable_tqdm": quiet, **recipe.training}
    try:
        return TrainingArguments(output_dir=recipe.output, **settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"TrainingArguments: {str(error).splitlines()[0]}") from error


def _trainer(
    model: PeftModel | PreTrainedModel,
    args: TrainingArguments,
    dataset: Dataset,
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    callbacks: list[Any],
) -> Trainer:
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=dataset,
        data_collator=collator(rows.form, tokenizer),
        callbacks=callbacks,
    )
    # Loggers that came with the Trainer move behind EffectSize, which adds to the line they log.
    own = {type(callback) for callback in callbacks}
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback) not in own and type(callback).__name__ == "TensorBoardCallback":
            trainer.add_callback(trainer.pop_callback(type(callback)))
    return trainer


def _give_maps_their_rate(trainer: Trainer, config: Any) -> None:
    """Move the maps' factors to a parameter group of their own if they have their own rate."""
    parts = config.parts if isinstance(config, LoradaConfig) else []
    rates = [
        p.map_learning_rate for p in parts if isinstance(p, LmamConfig) and p.map_learning_rate
    ]
    if not rates:
        return
    maps = {id(p) for name, p in trainer.model.named_parameters() if ".lmam." in name}
    optimizer = trainer.create_optimizer()
    moved = []
    for group in optimizer.param_groups:
        moved += [p for p in group["params"] if id(p) in maps]
        group["params"] = [p for p in group["params"] if id(p) not in maps]
    optimizer.add_param_group(
        {"params": moved, "lr": rates[0], "weight_decay": trainer.args.weight_decay}
    )


def _save_whole(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: Path,
    recipe: Recipe,
) -> None:
    """Write the adapter (or the model) beside its place, then move it there in one step."""
    name = "adapter" if isinstance(model, PeftModel) else "model"
    with tempfile.TemporaryDirectory(dir=run) as scratch:
        fresh = Path(scratch) / name
        model.save_pretrained(fresh)
        if name == "model":
            tokenizer.save_pretrained(fresh)
        else:
            write_card(fresh, recipe, model.peft_config["default"])
        if (run / name).is_dir():
            shutil.rmtree(run / name)
        fresh.rename(run / name)


def _result(
    recipe: Recipe, rows: Rows, trainer: Trainer, effect: EffectSize, seconds: float
) -> dict[str, Any]:
    history = [
        {key: entry[key] for key in ("step", "loss", "effect_size", "grad_norm") if key in entry}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return {
        "recipe": recipe.model_dump(),
        "method": recipe.method,
        "model": recipe.model,
        "task": recipe.task,
        "seed": trainer.args.seed,
        "data": {"file": Path(rows.path).name, "rows": len(rows.rows), "sha256": rows.fingerprint},
        "labels": list(rows.labels),
        "versions": versions(),
        "hardware": hardware(),
        "parameters": parameter_counts(trainer.model),
        "steps": trainer.state.global_step,
        "wall_time_s": round(seconds, 1),
        "peak_memory_bytes": peak_memory(),
        "train_loss": history[-1]["loss"] if history else None,
        "effect_size": {"mean": effect.mean, "by_layer": effect.by_layer}
        if effect.by_layer
        else None,
        "metrics": {},
        "history": history,
    }
