"""A candidate as a report shows it: what its runs show, and what is decided about it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import isclose
from typing import Any

import numpy as np

from lorada.compare.read_results import CandidateResult, ScoredRun
from lorada.compare.stored_plan import Candidate
from lorada.decision.decision_record import Decision
from lorada.support.in_words import counted
from lorada.support.metric_names import LOSS, as_score
from lorada.support.tables import NOTHING

GIB = 2**30


@dataclass(frozen=True)
class Measured:
    """What the runs of a candidate show; None where it was not measured."""

    # What candidates are compared by, a mean over rows and seeds: percent, or a loss or error as it
    # is, of which less is better.
    score: float | None = None
    metric: str = ""  # the main metric, such as ``exact_match``
    value: float | None = None  # mean of that over seeds; not the score if it is no mean over rows
    peak_memory_gib: float | None = None  # GiB, the largest of its runs
    seconds_per_step: float | None = None  # of its fastest run: other work can only slow one down
    adapter_bytes: int | None = None  # of its largest saved adapter
    run_seconds: float | None = None  # of the trainings of all its runs together
    train_loss: float | None = None  # of the last logged steps, the mean over runs
    held_out_loss: float | None = None  # the mean over held-out rows and runs, likewise in nats
    rates: tuple[float, ...] = ()  # learning rates of its runs, from the lowest on
    map_rates: tuple[float, ...] = ()  # those of its maps, where they differ


@dataclass(frozen=True)
class Decided:
    """What is decided about a candidate."""

    low: float | None = None  # ends of the score's 95 % confidence interval
    high: float | None = None
    expected_loss: float | None = None  # of taking it, in the unit of the score
    mark: str = ""  # such as ``take``, ``not worse`` or ``too few runs``
    letter: str = ""  # of groups that are not significantly different; empty without a test
    p_best: float | None = None  # against the highest score, corrected (Holm)


@dataclass(frozen=True, eq=False)
class CandidateLine:
    """A line of a report: a candidate's runs, what they show, and what is decided about it."""

    result: CandidateResult
    measured: Measured = Measured()
    decided: Decided = Decided()

    @property
    def label(self) -> str:
        """The candidate's name, as no other has it."""
        return self.result.label

    @property
    def score(self) -> float | None:
        """Its mean score, as it is shown; None without a run."""
        return self.measured.score

    @property
    def seed_scores(self) -> list[float]:
        """The mean score of each of its runs, as it is shown, in their order."""
        means = self.result.scores.mean(axis=1) if self.result.runs else []
        return [as_score(float(mean), self.measured.metric) for mean in means]

    @property
    def searched(self) -> str:
        """Between how many values its search has chosen, in words."""
        if self.result.search is None:
            return "nothing" if self.result.runs else NOTHING
        trials = self.result.search.trials
        tried = [counted(len({trial.rate for trial in trials}), "learning rate")]
        map_factors = {trial.map_factor for trial in trials}
        if len(map_factors) > 1:
            tried.append(f"{len(map_factors)} rates of maps")
        settings = len(self.result.candidate.choices)
        if settings > 1:
            tried.append(f"{settings} settings")
        return ", ".join(tried)

    def value_differs(self, same: float) -> bool:
        """Whether the main metric is another number than the score, by more than ``same``."""
        score, value = self.measured.score, self.measured.value
        return score is not None and value is not None and abs(value - score) > same

    def plain(self) -> dict[str, Any]:
        """All of it, for ``report.json``."""
        candidate, search = self.result.candidate, self.result.search
        decided, measured = self.decided, self.measured
        return {
            "label": self.label,
            "method": candidate.method,
            "budget": ", ".join(candidate.budgets),
            "above": any(candidate.budgets.values()),
            "sizes": self.result.sizes,
            "trainable": candidate.trainable,
            "percent": candidate.percent,
            "mergeable": candidate.mergeable,
            "seeds": [run.seed for run in self.result.runs],
            "score": measured.score,
            "low": decided.low,
            "high": decided.high,
            "expected_loss": decided.expected_loss,
            "mark": decided.mark,
            "letter": decided.letter,
            "p_best": decided.p_best,
            "metric": measured.metric,
            "value": measured.value,
            "peak_memory_gib": measured.peak_memory_gib,
            "seconds_per_step": measured.seconds_per_step,
            "adapter_bytes": measured.adapter_bytes,
            "run_seconds": measured.run_seconds,
            "search_seconds": self.result.search_seconds,
            "train_loss": measured.train_loss,
            "held_out_loss": measured.held_out_loss,
            "searched": self.searched,
            "rates": measured.rates,
            "map_rates": measured.map_rates,
            "reason": self.result.reason,
            "trials": [] if search is None else [asdict(trial) for trial in search.trials],
        }


def measure(result: CandidateResult, metric: str, factor: float = 1.0) -> Measured:
    """What the runs of a candidate show; nothing without a run.

    Args:
        result: the candidate.
        metric: the main one, or several with slashes between.
        factor: by which the values of the metric are multiplied: 100 for a user's own that gives
            shares, so that they are in percent, else 1.
    """
    if not result.runs:
        return Measured()
    runs = result.runs
    # Scores are higher for the better one; a loss or an error is shown with its own sign again.
    score = as_score(float(result.scores.mean()), metric)
    peaks = [run.result.peak_memory_bytes for run in runs]
    step_seconds = [run.result.seconds_per_step for run in runs]
    rates = _known(_learning_rate(run) for run in runs)
    # Both are 0 where a result does not say them.
    seconds = sum(float(run.result.wall_time_s) for run in runs)
    sizes = [run.result.adapter_bytes for run in runs]
    return Measured(
        score=score,
        metric=metric,
        value=score if metric == LOSS else _mean_value(result, metric, factor),
        peak_memory_gib=max((peak / GIB for peak in _known(peaks)), default=None),
        seconds_per_step=min(_known(step_seconds), default=None),
        adapter_bytes=max(sizes) or None,
        run_seconds=seconds or None,
        train_loss=_mean(run.result.train_loss for run in runs),
        held_out_loss=_mean(result.losses[np.isfinite(result.losses)]),
        rates=tuple(sorted(set(rates))),
        map_rates=_map_rates(result, rates),
    )


def _mean_value(result: CandidateResult, metric: str, factor: float) -> float | None:
    """The mean of a metric over the runs, as their results have it."""
    values = []
    for name in metric.split("/"):
        for metrics in result.metrics:
            value = metrics.scores.get(name)
            if value is not None:
                values.append(factor * value)
    return float(np.mean(values)) if values else None


def _map_rates(result: CandidateResult, rates: Iterable[float]) -> tuple[float, ...]:
    """The learning rates of maps, without those that the other parameters have too."""
    map_rates = set()
    for run in result.runs:
        map_rate = _map_rate(result.candidate, run)
        # One rate is a multiple of the other, so that equal ones may be rounded otherwise.
        if map_rate and not any(isclose(map_rate, rate) for rate in rates):
            map_rates.add(map_rate)
    return tuple(sorted(map_rates))


def _map_rate(candidate: Candidate, run: ScoredRun) -> float | None:
    """The learning rate of the maps of a run; None if they have that of the other parameters."""
    rate, recipe = _learning_rate(run), run.result.recipe
    map_rate = None if recipe is None else recipe.parts.get("lmam", {}).get("map_learning_rate")
    if rate is not None:
        if map_rate is None and candidate.map_rate and candidate.default_rate:
            return candidate.map_rate / candidate.default_rate * rate
        if isinstance(map_rate, str):  # a multiple, such as ``2x``
            return float(map_rate.removesuffix("x")) * rate
    return float(map_rate) if isinstance(map_rate, int | float) else None


def _learning_rate(run: ScoredRun) -> float | None:
    """The learning rate of a run; None if its result does not say."""
    recipe = run.result.recipe
    rate = None if recipe is None else recipe.training.get("learning_rate")
    return float(rate) if isinstance(rate, int | float) else None


def _mean(numbers: Iterable[float | None]) -> float | None:
    """The mean of the numbers that were measured; None if none was."""
    known = _known(numbers)
    return float(np.mean(known)) if known else None


def _known(numbers: Iterable[float | None]) -> list[float]:
    """The numbers without those that were not measured."""
    return [float(number) for number in numbers if number is not None]


def decided_of(label: str, decision: Decision | None) -> Decided:
    """What is decided about a candidate; nothing of one that the decision does not know."""
    if decision is None or label not in decision.runs:
        return Decided()
    low, high = decision.intervals.get(label, (None, None))
    return Decided(
        low=low,
        high=high,
        expected_loss=decision.expected_loss.get(label),
        mark=decision.mark(label),
        letter=decision.letters.get(label, ""),
        p_best=decision.p_highest.get(label),
    )
