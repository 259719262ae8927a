"""Decides which candidate to take, by ``lorada.compare``, and says it in plain English."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from lorada.compare.decide import decide
from lorada.compare.decision import Decision
from lorada.compare.report.read import Results
from lorada.compare.report.summary import Baseline, CandidateLine
from lorada.compare.report.units import best_of, shown_score, unit_behind, windows_overlap
from lorada.compare.statistics import Scores
from lorada.support.metric_names import as_score, lower_is_better

HARDLY = 0.05  # a training loss that falls by a smaller share hardly fell
Losses = tuple[float, float] | None  # of a training, in its first and in its last quarter


def decided(
    results: Results,
    lines: Sequence[CandidateLine],
    baselines: Sequence[tuple[Baseline, Scores | None]],
    metric: str,
    margin: float | None,
) -> Decision | None:
    """Which candidate to take; None without scores of two rows that are independent.

    Args:
        results: of the comparison.
        lines: of the candidates, with their costs.
        baselines: with the score of each row without training, higher for the better one.
        metric: that they are compared by.
        margin: that a cheaper candidate may cost; None for the comparison's own.
    """
    rows = len(results.rows)
    if rows < 2 or windows_overlap(metric):
        return None
    sign = as_score(1.0, metric)
    ran = [c for c in results.candidates if c.runs or c.diverged]
    costs = {line.label: _costs(line) for line in lines}
    return decide(
        {c.label: sign * np.vstack([c.scores.reshape(-1, rows),
                                    np.full((len(c.diverged), rows), np.nan)]) for c in ran},
        {c.label: costs[c.label] for c in ran},
        results.asked.get("margin") if margin is None else margin,
        lower_is_better=lower_is_better(metric),
        baselines={one.name: sign * each for one, each in baselines if each is not None},
        seeds={c.label: (*(run.seed for run in c.runs), *c.diverged) for c in ran},
        unit=unit_behind(metric),
    )  # fmt: skip


def _costs(line: CandidateLine) -> dict[str, float]:
    memory = None if line.peak_memory_gib is None else line.peak_memory_gib * 2**30
    given = {"parameters": line.trainable, "seconds": line.seconds_per_step, "bytes": memory}
    return {name: cost for name, cost in given.items() if cost is not None}


def training_losses(history: Sequence[tuple[int, float]]) -> Losses:
    """The mean loss of the first and of the last quarter of what was logged: (step, nats)."""
    if len(history) < 2:
        return None
    losses = [loss for _, loss in history]
    part = max(1, len(losses) // 4)
    return fmean(losses[:part]), fmean(losses[-part:])


def hardly_fell(losses: Losses) -> bool:
    """Whether a training loss fell by less than a twentieth."""
    return losses is not None and losses[1] > (1 - HARDLY) * losses[0]


def verdict(
    decision: Decision | None, top: CandidateLine | None, losses: Losses, again: str
) -> str:
    """The result in a few sentences; where nothing was learned, with what to do.

    Args:
        decision: which candidate to take; None if nothing can be tested.
        top: the line with the highest score; None without scores.
        losses: of the training of what is taken, or else of the highest.
        again: the command that compares again with more steps.
    """
    if decision is None and top is None:
        return "No run is scored yet, so there is no result."
    if decision is None and top is not None:
        overlap = windows_overlap(top.metric)
        needs = "windows that share no tokens" if overlap else "more held-out rows"
        return (
            f"{top.label} has the {best_of(top.metric)}, {shown_score(top.score, top.metric)}, but "
            f"that may be chance: a test needs {needs}."
        )
    if decision is not None and (decision.pick or not decision.highest):
        return decision.sentence
    said = decision.sentence if decision else ""
    if losses is not None:
        how = "hardly fell" if hardly_fell(losses) else "fell"
        said += f" Its training loss {how}: from {losses[0]:.2f} to {losses[1]:.2f}."
    other = "other learning rates (--rates) or more rows"
    what = other if hardly_fell(losses) else "more rows, or seeds and held-out rows to show less"
    return f"{said} Try more steps, {what}, for example: {again}"


def same_for_all(line: CandidateLine, losses: bool, command: str) -> str:
    """Says that the metric tells no difference; if the ``losses`` do, with the command for them."""
    said = f"{line.metric.replace('_', ' ')} is {shown_score(line.score, line.metric)} for all of"
    rest = f"their losses differ, `{command}`" if losses else "their losses are equal too."
    return f"{said} them: {rest}"


def counted(count: int, what: str) -> str:
    """A number of things, such as ``1 row`` or ``3 rows``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
