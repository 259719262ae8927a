"""Makes the plan of a comparison: which methods run at which size, and for how many steps."""

import math
from dataclasses import dataclass, replace
from typing import Any

from lorada.compare.comparison_rows import Data
from lorada.compare.jobs.job import last_line
from lorada.compare.jobs.queue import Report
from lorada.compare.kept import kept_plan
from lorada.compare.learning_rate import MAP, MAP_RATE
from lorada.compare.size_for import Sized, limit_of, size_for
from lorada.compare.spec import Comparison, choices_of
from lorada.compare.stored_plan import Candidate, ComparisonPlan, HeldOutRows, TrainingRows
from lorada.data.row_lengths import RowLengths
from lorada.data.scoring.chosen_metric import metric_of
from lorada.data.tokenize import context_of, encode_measured, fit_context
from lorada.methods.build import Plan, plan_method
from lorada.methods.sizes_and_rates import default_rate
from lorada.runs.machine import hardware, versions
from lorada.runs.recipe import Recipe
from lorada.support.row_sources import HEADED, file_names
from lorada.training.arguments import counting_arguments, default_learning_rate
from lorada.training.inputs import Prepared, refuse_packing
from lorada.training.models.loading import stretched
from lorada.training.packing import pack
from lorada.training.parameter_counts import parameters_of, refuse_impossible
from lorada.tuners import LmamConfig, LoradaConfig


def make_plan(comparison: Comparison, base: Prepared, data: Data, report: Report) -> ComparisonPlan:
    """Choose the size of each method for each budget, and count the steps of a training.

    Wrong settings and budgets are refused before any model is built, and a plan in which no method
    can be run at the end. ``report`` says what is being done.
    """
    # What is wrong with the shared settings is found before any model is built.
    args = counting_arguments(comparison.shared_recipe)
    metric = metric_of(data.train, comparison.shared_recipe)
    for budget in comparison.budgets:
        limit_of(budget, 1)  # refuses what is none, before the first model is built
    candidates: list[Candidate] = []
    for method in comparison.methods:
        report(f"choosing the size of {method}")
        candidates += candidates_of(comparison, method, data, base)

    steps, train_lengths = steps_and_lengths(comparison, base, data)
    fingerprints = fingerprints_of(data)
    plan = ComparisonPlan(
        candidates=candidates,
        steps=steps,
        batch=args.per_device_train_batch_size,
        dev_rows=data.dev_rows,
        train=fingerprints.train,
        held_out=fingerprints.held_out,
        overlap=data.overlap,
        metric=metric,
        train_lengths=train_lengths,
        held_out_lengths=held_out_lengths(comparison, base, data),
        versions=versions(),
        hardware=hardware(),
        kept=kept_plan(data.kept, data.train),
    )
    if not plan.runnable:
        reasons = [f"{candidate.method}: {candidate.reason}" for candidate in candidates]
        raise ValueError(f"no method can be run: {'; '.join(reasons)}")
    return plan


@dataclass(frozen=True)
class Fingerprints:
    """What a plan keeps of the rows, to know them again."""

    train: TrainingRows
    held_out: dict[str, HeldOutRows]  # by the name of the rows

    def are_of(self, plan: ComparisonPlan) -> bool:
        """Whether a plan was made for these rows."""
        return self.train == plan.train and self.held_out == plan.held_out


def fingerprints_of(data: Data) -> Fingerprints:
    """The fingerprints of the training rows and of the held-out rows."""
    train = TrainingRows(
        file=file_names(data.train.path), rows=len(data.train.rows), sha256=data.train.fingerprint
    )
    held_out = {
        name: HeldOutRows(len(rows.rows), rows.fingerprint) for name, rows in data.held_out.items()
    }
    return Fingerprints(train, held_out)


def candidates_of(
    comparison: Comparison, method: str, data: Data, base: Prepared
) -> list[Candidate]:
    """A method at the size of each budget; budgets that lead to the same size share one."""
    by_size: dict[int | None, Candidate] = {}
    budgets: list[str | None] = [*comparison.budgets] or [None]
    for budget in budgets:
        candidate = _candidate_of_choices(comparison, method, budget, data, base)
        # Methods have whole ranks, so a little more of a budget often leads to no larger size.
        of_this_size = by_size.setdefault(candidate.trainable, candidate)
        shared_budgets = {**of_this_size.budgets, **candidate.budgets}
        by_size[candidate.trainable] = replace(of_this_size, budgets=shared_budgets)
    return list(by_size.values())


def _candidate_of_choices(
    comparison: Comparison, method: str, budget: str | None, data: Data, base: Prepared
) -> Candidate:
    """A method at one budget; of several settings to choose from, that which trains the most.

    If one of the settings cannot be run, none of them is, and its reason is that of the method.
    """
    choices = [_candidate(comparison, choice, budget, data, base) for choice in choices_of(method)]
    if len(choices) == 1:
        return choices[0]
    for choice in choices:
        if choice.reason is not None:
            reason = f"{choice.method}: {choice.reason}"
            return replace(choice, method=method, reason=reason, choices=choices)
    largest = max(choices, key=lambda choice: choice.trainable or 0)
    return replace(largest, method=method, choices=choices)


def _candidate(
    comparison: Comparison, method: str, budget: str | None, data: Data, base: Prepared
) -> Candidate:
    """A method at one budget; of any error about the method, its text is the reason."""
    recipe = comparison.run_recipe(method, "-")
    budgets = {} if budget is None else {budget: False}
    try:
        if recipe.packing:
            refuse_packing(data.train.form, base.kind, recipe.method)
        sized = _sized(recipe, budget)
        if budget is not None:
            budgets = {budget: sized.above}
        plan = plan_method(recipe.method, base.config, sized.parts)
        counts = sized.counts
        refuse_impossible(recipe, plan, counts)
        rate = _first_rate(comparison, recipe, plan)
        return Candidate(
            method=method,
            budgets=budgets,
            parts=sized.parts,
            trainable=counts["trainable"],
            percent=counts["percent"],
            total=counts["total"],
            settings_from=counts["settings_from"],
            mergeable=plan.config is None or plan.config.mergeable,
            default_rate=rate,
            map_rate=_map_rate(plan.config, recipe, rate),
        )
    except Exception as error:  # of any class: each tuner of PEFT raises its own
        return Candidate(method, budgets, reason=last_line(error))


def _sized(recipe: Recipe, budget: str | None) -> Sized:
    """A recipe's method at the size of a budget; without one at that of the recipe."""
    if budget is None:
        return Sized(recipe.parts, parameters_of(recipe), above=False)
    return size_for(recipe, budget)


def _first_rate(comparison: Comparison, recipe: Recipe, plan: Plan) -> float:
    """The field ``default_rate`` of a candidate.

    A search begins with the rate that the method's authors use. Where nothing is searched, a run is
    what ``lorada train`` would make of the same settings.
    """
    if comparison.searches_rates:
        return default_rate(recipe.method)
    return default_learning_rate(recipe, plan.arguments)


def _map_rate(config: Any, recipe: Recipe, rate: float) -> float | None:
    """The field ``map_rate`` of a candidate whose other parts train at a rate."""
    parts = config.parts if isinstance(config, LoradaConfig) else []
    maps = [part for part in parts if isinstance(part, LmamConfig)]
    is_beside_other_parts = bool(maps) and maps != parts
    is_set = MAP_RATE in recipe.parts.get(MAP, {})
    if not is_beside_other_parts or is_set:
        return None
    return maps[0].rate_beside(rate)


def steps_and_lengths(
    comparison: Comparison, base: Prepared, data: Data
) -> tuple[int, RowLengths | None]:
    """How many steps a training on all rows takes, as the Trainer counts them; and their lengths.

    Rows of benchmarks are cut as was published, and not measured.
    """
    recipe, read_tokens = _fitted(comparison, base)
    args = counting_arguments(recipe)
    if args.max_steps > 0 and not comparison.has_own_rows:
        return int(args.max_steps), None

    # Rows without anything to learn are left out when they are encoded, so all have to be.
    dataset, all_lengths = encode_measured(
        data.train, recipe, base.tokenizer, base.kind, reads=read_tokens
    )
    lengths = all_lengths if comparison.has_own_rows else None
    if args.max_steps > 0:
        return int(args.max_steps), lengths

    # From here on as the Trainer counts: of sequences batches, of batches steps, of steps epochs.
    sequences = len(pack(dataset, recipe.max_length) if recipe.packing else dataset)
    batches = sequences / args.per_device_train_batch_size
    whole_batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    steps_per_epoch = max(1, math.ceil(whole_batches / args.gradient_accumulation_steps))
    return math.ceil(args.num_train_epochs * steps_per_epoch), lengths


def held_out_lengths(comparison: Comparison, base: Prepared, data: Data) -> RowLengths | None:
    """The lengths of a user's held-out rows; rows that no run could be scored on are refused."""
    if not comparison.has_own_rows:
        return None
    recipe, read_tokens = _fitted(comparison, base)
    (rows,) = data.held_out.values()
    has_given_answers = rows.form == "choice" or rows.form in HEADED
    _, lengths = encode_measured(
        rows, recipe, base.tokenizer, base.kind, answered=has_given_answers, reads=read_tokens
    )
    return lengths


def _fitted(comparison: Comparison, base: Prepared) -> tuple[Recipe, int | None]:
    """The shared settings within what the model reads, and how many tokens that is."""
    config = stretched(base.config, comparison.shared_recipe.rope_factor)
    return fit_context(comparison.shared_recipe, config), context_of(config)
