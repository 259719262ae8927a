"""Says in plain English which candidate to take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from lorada.report.comparison.statistics import ALPHA
from lorada.report.comparison.summary import Baseline, CandidateLine
from lorada.report.comparison.units import best_of, shown_gap, shown_score, windows_overlap
from lorada.support.metric_names import as_score, lower_is_better

HARDLY = 0.05  # a training loss that falls by a smaller share hardly fell
# What the cheapest of candidates that cannot be told apart has least of: field of a line → words.
COSTS = {
    "trainable": "trains the fewest parameters ({:,})",
    "seconds_per_step": "takes the least time for a step ({:.2g} s)",
    "peak_memory_gib": "needs the least memory ({:.2g} GiB)",
}


@dataclass(frozen=True)
class Recommendation:
    """Which candidate to take, and why.

    Attributes:
        scored: the lines with a score, the highest first.
        top: the highest of the lines that are tested, against others or against the scores without
            training; if none is tested, of all; None without scores.
        tied: the tested lines that cannot be told apart from ``top``, and ``top`` itself.
        best: the line to take: of those in ``tied`` that beat every score without training by more
            than chance, the cheapest; if none of them does, the highest line that does. None if no
            line does. Where no line is tested, ``top`` if it is above those scores.
        cost: what ``best`` has the least of, in words; empty if nothing else was to choose from.
        unlearned: those of ``tied`` that do not beat the scores without training.
        baseline: the baseline with the highest score; None without one.
        losses: the training loss of ``best``, or else of ``top``, in the first and in the last
            quarter of its steps, in nats per token; None if it was not logged.
    """

    scored: Sequence[CandidateLine]
    top: CandidateLine | None
    tied: Sequence[CandidateLine]
    best: CandidateLine | None
    cost: str
    unlearned: Sequence[CandidateLine]
    baseline: Baseline | None
    losses: tuple[float, float] | None

    @property
    def untested(self) -> CandidateLine | None:
        """The highest line, if it is above ``top``: it has one seed, so it is not tested."""
        highest = next(iter(self.scored), None)
        same = highest is None or self.top is None or highest.score == self.top.score
        return None if same else highest

    @property
    def hardly_fell(self) -> bool:
        """Whether the training loss fell by less than a twentieth."""
        return self.losses is not None and self.losses[1] > (1 - HARDLY) * self.losses[0]


def choose(
    lines: Sequence[CandidateLine],
    baselines: Sequence[Baseline],
    histories: Mapping[str, Sequence[tuple[int, float]]],
) -> Recommendation:
    """Choose a candidate.

    Args:
        lines: of all candidates, the highest score first.
        baselines: scores without training.
        histories: label → training loss over steps: (step, nats per token).
    """
    scored = [line for line in lines if line.score is not None]
    # Where some lines are tested, luck may be all that the others have.
    tested = [line for line in scored if line.letter or line.p_untrained is not None] or scored
    top = next(iter(tested), None)
    tied = [one for one in scored if one is top or (one.p_best is not None and one.p_best >= ALPHA)]
    baseline = max(
        (b for b in baselines if b.score is not None), key=lambda b: b.score or 0.0, default=None
    )
    better = [line for line in tested if _beats(line, baseline)]
    eligible = [line for line in tied if line in better] or better[:1]
    best, cost = _cheapest(eligible)
    shown = best or top
    history = histories.get(shown.label, []) if shown else []
    losses = _losses([loss for _, loss in history])
    unlearned = [line for line in tied if line not in better]
    return Recommendation(scored, top, tied, best, cost, unlearned, baseline, losses)


def _beats(line: CandidateLine, baseline: Baseline | None) -> bool:
    """Whether a line is above all scores without training, by more than chance if it is tested."""
    if baseline is None or baseline.score is None or line.score is None:
        return baseline is None
    if line.p_untrained is None:
        return line.score > baseline.score
    return line.p_untrained < ALPHA


def _cheapest(lines: Sequence[CandidateLine]) -> tuple[CandidateLine | None, str]:
    """The cheapest line and its costs in words: the first in which they differ, then the next.

    The next is that of the lines which have equally little of the first.
    """
    left, said = list(lines), []
    for field, words in COSTS.items():
        values = [getattr(line, field) for line in left]
        if None not in values and len(set(values)) > 1:
            left = [line for line, value in zip(left, values, strict=True) if value == min(values)]
            said.append(words.format(min(values)))
    return next(iter(left), None), ", and of those equal in this ".join(said)


def _losses(history: Sequence[float]) -> tuple[float, float] | None:
    """The mean loss of the first and of the last quarter of what was logged."""
    if len(history) < 2:
        return None
    part = max(1, len(history) // 4)
    return fmean(history[:part]), fmean(history[-part:])


def verdict(choice: Recommendation, again: str) -> str:
    """The result in one sentence or two; where nothing was learned, with what to do.

    Args:
        choice: which candidate to take.
        again: the command that compares again with more steps.
    """
    top, baseline = choice.top, choice.baseline
    if top is None:
        return "No run is scored yet, so there is no result."
    if choice.best is None and baseline is not None:
        said = f"{_nothing_learned(choice, top, baseline)}{_higher_untested(choice)}"
        return f"{said} {_advice(choice)}: {again}"
    return f"{_winner(choice, top)}{_higher_untested(choice)}"


def _higher_untested(choice: Recommendation) -> str:
    if (line := choice.untested) is None:
        return ""
    score = shown_score(line.score, line.metric)
    better = best_of(line.metric).replace("est ", "er ")
    return f" {line.label} has a {better}, {score}, but only one seed, so it is not tested."


def _nothing_learned(choice: Recommendation, top: CandidateLine, baseline: Baseline) -> str:
    """That no method beats the scores without training by more than chance."""
    score, least = shown_score(top.score, top.metric), shown_score(baseline.score, top.metric)
    tested, of_those = ("tested ", " of those tested") if choice.untested else ("", "")
    if (top.score or 0.0) <= (baseline.score or 0.0):
        return (
            f"{'No tested method' if tested else 'Nothing'} beats {baseline.name}, which scores "
            f"{least}: the {best_of(top.metric)}{of_those or ' of a method'} is {score}, of "
            f"{top.label}."
            f"{_loss_went(choice)}"
        )
    chance = "" if top.p_untrained is None else f" (p = {top.p_untrained:.2g})"
    return (
        f"No {tested}method has learned more than chance would show: the {best_of(top.metric)}"
        f"{of_those}, {score} of {top.label}, cannot be told from {least} of {baseline.name}"
        f"{chance}.{_loss_went(choice)}"
    )


def _loss_went(choice: Recommendation) -> str:
    if choice.losses is None:
        return ""
    how = "hardly fell" if choice.hardly_fell else "fell"
    return f" Its training loss {how}: from {choice.losses[0]:.2f} to {choice.losses[1]:.2f}."


def _advice(choice: Recommendation) -> str:
    if choice.hardly_fell:
        return "Try more steps, other learning rates (--rates) or more rows, for example"
    return "Try more steps or more rows, or seeds and held-out rows to show less, for example"


def _winner(choice: Recommendation, top: CandidateLine) -> str:
    """Which candidate to take, where one beats the scores without training."""
    best, score = choice.best or top, shown_score(top.score, top.metric)
    others = [line for line in choice.scored if line is not top]
    tested = [line for line in others if line.p_best is not None]
    if not others:
        return f"{top.label} scores {score}; no other candidate has a score to compare it with."
    if not tested and choice.untested and choice.baseline is not None:
        above = f"above {choice.baseline.name} by more than chance"
        return f"Take {top.label}: it scores {score}, {above}."
    if not tested:
        several = sum(len(line.seeds) > 1 for line in choice.scored) > 1
        needs = "more held-out rows" if several else "two candidates with two seeds each"
        if windows_overlap(top.metric):
            needs = "windows that share no tokens"
        return (
            f"{top.label} has the {best_of(top.metric)}, {score}, but that may be chance: a test "
            f"needs {needs}."
        )
    if len(choice.tied) == 1 and best is top:
        worst = max(line.p_best or 0.0 for line in tested)
        less = "higher" if lower_is_better(top.metric) else "less"
        low, high = sorted((top.low, top.high), key=lambda end: as_score(end or 0.0, top.metric))
        return (
            f"Take {top.label}: it scores {score} ({shown_score(low, top.metric)} to "
            f"{shown_score(high, top.metric)}), and {counted(len(tested), 'other candidate')} "
            f"{'scores' if len(tested) == 1 else 'score'} {less} by more than chance "
            f"(p ≤ {worst:.2g})."
        )
    of_best = shown_score(best.score, top.metric)
    if best not in choice.tied:
        return (
            f"Take {best.label}, with {of_best}: {top.label} has {score}, but is "
            "not above the scores without training by more than chance."
        )
    tied = counted(len(choice.tied) - 1, "other candidate")
    highest = f"the {best_of(top.metric)}{' of those tested' if choice.untested else ''}"
    these, rest = "of these", choice.cost or f"has the {best_of(top.metric)}"
    if choice.unlearned and choice.baseline is not None:
        these = f"of those that also beat {choice.baseline.name} by more than chance"
        if len(choice.tied) == len(choice.unlearned) + 1:
            these, rest = "of these only", f"beats {choice.baseline.name} by more than chance"
    if best is top:
        found = f"Take {top.label}: it has {highest}, {score}. {tied} cannot be told apart from it"
        return f"{found}, and {these} it {choice.cost}." if choice.cost else f"{found}."
    gap = (top.score or 0.0) - (best.score or 0.0)
    found = (
        f"Take {best.label}, with {of_best}: {top.label} has {highest}, {score}, "
        f"but {tied} cannot be told apart from it, and {these} {best.label} {rest}."
    )
    if of_best == score:
        return found
    lower = shown_gap(gap, top.metric)
    more = f"More held-out rows and seeds may show whether the {lower} between the two are real."
    return f"{found} {more}"


def same_for_all(line: CandidateLine, losses: bool, command: str) -> str:
    """Says that the metric tells no difference; if the ``losses`` do, with the command for them."""
    said = f"{line.metric.replace('_', ' ')} is {shown_score(line.score, line.metric)} for all of"
    rest = f"their losses differ, `{command}`" if losses else "their losses are equal too."
    return f"{said} them: {rest}"


def counted(count: int, what: str) -> str:
    """A number of things, such as ``1 row`` or ``3 rows``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
