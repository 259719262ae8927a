"""Makes the plan of a comparison: which methods run at which size, and for how many steps."""

import math
from dataclasses import replace
from typing import Any

from lorada.compare.comparison_rows import Data
from lorada.compare.jobs.job import last_line
from lorada.compare.jobs.queue import Report
from lorada.compare.learning_rate import MAP, MAP_RATE
from lorada.compare.size_for import limit_of, size_for
from lorada.compare.spec import Comparison, choices_of
from lorada.compare.stored_plan import Candidate, ComparisonPlan
from lorada.data.row_lengths import RowLengths
from lorada.data.task_rows import metric_of
from lorada.data.tokenize import context_of, encode_measured, fit_context
from lorada.methods.build import plan_method
from lorada.methods.sizes_and_rates import default_rate
from lorada.runs.recipe import Recipe
from lorada.runs.result import hardware, versions
from lorada.support.row_sources import HEADED, file_names
from lorada.training.arguments import counting_arguments
from lorada.training.inputs import Prepared, refuse_packing
from lorada.training.models.loading import stretched
from lorada.training.packing import pack
from lorada.training.parameter_counts import parameters_of, refuse_impossible
from lorada.tuners import LmamConfig, LoradaConfig


def make_plan(comparison: Comparison, base: Prepared, data: Data, report: Report) -> ComparisonPlan:
    """Choose the size of each method for each budget, and count the steps of a training."""
    args = counting_arguments(comparison.shared_recipe)
    metric = metric_of(data.train, comparison.shared_recipe)
    for budget in comparison.budgets:
        limit_of(budget, 1)  # refuses what is none
    candidates: list[Candidate] = []
    for method in comparison.methods:
        report(f"choosing the size of {method}")
        candidates += candidates_of(comparison, method, data, base)
    steps, train_lengths = steps_and_lengths(comparison, base, data)
    plan = ComparisonPlan(
        candidates=candidates,
        steps=steps,
        batch=args.per_device_train_batch_size,
        dev_rows=data.dev_rows,
        train=about(data)[0],
        held_out=about(data)[1],
        overlap=data.overlap,
        metric=metric,
        train_lengths=train_lengths,
        held_out_lengths=held_out_lengths(comparison, base, data),
        versions=versions(),
        hardware=hardware(),
    )
    if not plan.runnable:
        reasons = "; ".join(f"{each.method}: {each.reason}" for each in candidates)
        raise ValueError(f"no method can be run: {reasons}")
    return plan


def about(data: Data) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What a plan keeps of the training rows and of the held-out rows."""
    rows = data.train
    train = {"file": file_names(rows.path), "rows": len(rows.rows), "sha256": rows.fingerprint}
    held_out = {
        name: {"rows": len(rows.rows), "sha256": rows.fingerprint}
        for name, rows in data.held_out.items()
    }
    return train, held_out


def candidates_of(
    comparison: Comparison, method: str, data: Data, base: Prepared
) -> list[Candidate]:
    """A method at the size of each budget; budgets that lead to the same size share one."""
    found: dict[int | None, Candidate] = {}
    budgets: list[str | None] = [*comparison.budgets] or [None]
    for budget in budgets:
        recipes = {each: comparison.run_recipe(each, "-") for each in choices_of(method)}
        each = [_candidate(name, recipe, budget, data, base) for name, recipe in recipes.items()]
        one = max(each, key=lambda found: (found.reason is not None, found.trainable or 0))
        if len(each) > 1:
            reason = one.reason and f"{one.method}: {one.reason}"
            one = replace(one, method=method, reason=reason, choices=each)
        known = found.setdefault(one.trainable, one)
        found[one.trainable] = replace(known, budgets={**known.budgets, **one.budgets})
    return list(found.values())


def _candidate(
    method: str, recipe: Recipe, budget: str | None, data: Data, base: Prepared
) -> Candidate:
    """A method at one budget; of any error about the method, its text is the reason."""
    budgets = {} if budget is None else {budget: False}
    try:
        if recipe.packing:
            refuse_packing(data.train.form, base.kind, recipe.method)
        if budget is None:
            counts = parameters_of(recipe)
            parts = recipe.parts
        else:
            sized = size_for(recipe, budget)
            counts, parts = sized.counts, sized.parts
            budgets = {budget: sized.above}
        made = plan_method(recipe.method, base.config, parts)
        refuse_impossible(recipe, made, counts)
        config = made.config
        return Candidate(
            method=method,
            budgets=budgets,
            parts=parts,
            **{name: counts[name] for name in ("trainable", "percent", "total", "settings_from")},
            mergeable=config is None or config.mergeable,
            default_rate=default_rate(recipe.method),
            map_rate=_map_rate(config, recipe),
        )
    except Exception as error:  # of any class: each tuner of PEFT raises its own
        return Candidate(method, budgets, reason=last_line(error))


def _map_rate(config: Any, recipe: Recipe) -> float | None:
    """The field ``map_rate`` of a candidate."""
    parts = config.parts if isinstance(config, LoradaConfig) else []
    maps = [part for part in parts if isinstance(part, LmamConfig)]
    beside = bool(maps) and maps != parts
    if not beside or MAP_RATE in recipe.parts.get(MAP, {}):
        return None
    return maps[0].rate_beside(default_rate(recipe.method))


def steps_and_lengths(
    comparison: Comparison, base: Prepared, data: Data
) -> tuple[int, RowLengths | None]:
    """How many steps a training on all rows takes, as the Trainer counts them; and their lengths.

    Rows of benchmarks are cut as was published, and not measured.
    """
    recipe, reads = _fitted(comparison, base)
    args = counting_arguments(recipe)
    if args.max_steps > 0 and not comparison.has_own_rows:
        return int(args.max_steps), None
    dataset, lengths = encode_measured(data.train, recipe, base.tokenizer, base.kind, reads=reads)
    lengths = lengths if comparison.has_own_rows else None
    if args.max_steps > 0:
        return int(args.max_steps), lengths
    rows = len(pack(dataset, recipe.max_length) if recipe.packing else dataset)
    batch = args.per_device_train_batch_size
    batches = rows // batch if args.dataloader_drop_last else -(-rows // batch)
    steps = max(1, -(-batches // args.gradient_accumulation_steps))
    whole: int = math.ceil(args.num_train_epochs * steps)
    return whole, lengths


def held_out_lengths(comparison: Comparison, base: Prepared, data: Data) -> RowLengths | None:
    """The lengths of a user's held-out rows; rows that no run could be scored on are refused."""
    if not comparison.has_own_rows:
        return None
    recipe, reads = _fitted(comparison, base)
    (rows,) = data.held_out.values()
    answered = rows.form == "choice" or rows.form in HEADED
    return encode_measured(rows, recipe, base.tokenizer, base.kind, answered=answered, reads=reads)[
        1
    ]


def _fitted(comparison: Comparison, base: Prepared) -> tuple[Recipe, int | None]:
    """The shared settings within what the model reads, and how many tokens that is."""
    config = stretched(base.config, comparison.shared_recipe.rope_factor)
    return fit_context(comparison.shared_recipe, config), context_of(config)
