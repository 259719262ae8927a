"""Says in plain English which candidate to take, and what limits that choice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorada.report.comparison.read import Candidate, Results
from lorada.report.comparison.statistics import ALPHA, detectable
from lorada.report.comparison.summary import Baseline, Line, Search
from lorada.support.duration import duration

LOSSES = "perplexity"  # the metric of rows whose score is minus their loss in nats, not percent
NAMED = 6  # labels that a sentence names at most


@dataclass(frozen=True)
class Choice:
    """Which candidate to take, and why.

    Attributes:
        scored: the lines with a score, the highest first.
        top: the highest of the tested lines; if none is tested, of all; None without scores.
        tied: the tested lines that cannot be told apart from ``top``, and ``top`` itself.
        best: the line to take, which is ``top``; None if a baseline has a score as high.
        smallest: of ``tied`` and better than the baseline, the one with the fewest parameters.
        baseline: the baseline with the highest score; None without one.
        p_baseline: p-value of ``top`` against that baseline; None without a test.
    """

    scored: Sequence[Line]
    top: Line | None
    tied: Sequence[Line]
    best: Line | None
    smallest: Line | None
    baseline: Baseline | None
    p_baseline: float | None


def choose(
    lines: Sequence[Line], baselines: Sequence[Baseline], p_baselines: dict[str, float]
) -> Choice:
    """Choose a candidate.

    Args:
        lines: of all candidates, the highest score first.
        baselines: scores without training.
        p_baselines: name of a baseline → p-value of the highest tested score against it.
    """
    scored = [line for line in lines if line.score is not None]
    top = next((line for line in scored if line.letter), next(iter(scored), None))
    tied = [one for one in scored if one is top or (one.p_best is not None and one.p_best >= ALPHA)]
    baseline = max(
        (b for b in baselines if b.score is not None), key=lambda b: b.score or 0.0, default=None
    )
    least = -float("inf") if baseline is None or baseline.score is None else baseline.score
    better = [line for line in tied if line.score is not None and line.score > least]
    best = top if top in better else None
    smallest = min(better, key=lambda line: line.trainable or 0, default=None)
    p_baseline = None if baseline is None else p_baselines.get(baseline.name)
    return Choice(scored, top, tied, best, smallest, baseline, p_baseline)


def verdict(choice: Choice) -> str:
    """The result in one sentence, and a second one if its lead over a baseline can be chance."""
    top, best, baseline = choice.top, choice.best, choice.baseline
    if top is None:
        return "No run is scored yet, so there is no result."
    if best is None and baseline is not None:
        return (
            f"Nothing beats {baseline.name}, which scores {_shown(baseline.score, top)}: the "
            f"highest score of a method is {_shown(top.score, top)}, of {top.label}."
        )
    found = _winner(choice, top)
    if baseline is not None and choice.p_baseline is not None and choice.p_baseline >= ALPHA:
        lead = f"that {top.label} is better than {baseline.name} ({_shown(baseline.score, top)})"
        found += f" But {lead} can be chance (p = {choice.p_baseline:.2g})."
    return found


def _winner(choice: Choice, top: Line) -> str:
    """Which candidate to take, where it beats the baselines."""
    score = _shown(top.score, top)
    others = [line for line in choice.scored if line is not top]
    tested = [line for line in others if line.p_best is not None]
    if not others:
        return f"{top.label} scores {score}; no other candidate has a score to compare it with."
    if not tested:
        return (
            f"{top.label} has the highest score, {score}, but that may be chance: a test needs two "
            "candidates with two seeds each."
        )
    if len(choice.tied) == 1:
        worst = max(line.p_best or 0.0 for line in tested)
        return (
            f"Take {top.label}: it scores {score} ({_shown(top.low, top)} to "
            f"{_shown(top.high, top)}), and {_counted(len(tested), 'other candidate')} "
            f"{'scores' if len(tested) == 1 else 'score'} less by more than chance "
            f"(p ≤ {worst:.2g})."
        )
    highest = f"the highest score{'' if top is choice.scored[0] else ' of those tested'}"
    tied = _counted(len(choice.tied) - 1, "other candidate")
    found = f"Take {top.label}: it has {highest}, {score}. {tied} cannot be told apart from it"
    small = choice.smallest or top
    if small is top:
        return f"{found}, and it trains the fewest parameters of these ({top.trainable:,})."
    gap = (top.score or 0.0) - (small.score or 0.0)
    lower = f"{gap:.3f}" if top.metric == LOSSES else f"{gap:.1f} points"
    return (
        f"{found}; the smallest of these is {small.label}, with {small.trainable:,} parameters "
        f"instead of {top.trainable:,} and {_shown(small.score, top)}. More seeds may show whether "
        f"the {lower} between the two are real."
    )


def limits(
    results: Results, choice: Choice, tested: Sequence[Candidate], against: str, search: Search
) -> Iterator[str]:
    """What limits the verdict, a sentence each.

    Args:
        results: of the comparison.
        choice: the lines, and which of them to take.
        tested: the candidates with at least two seeds and two rows.
        against: the method that others are tested against.
        search: what the search for learning rates cost.
    """
    yield from _incomplete(results)
    yield from _detectable(choice, tested)
    yield from _compared_with(choice.scored, against)
    untested = [line.label for line in choice.scored if len(line.seeds) < 2]
    if untested:
        yield f"Not tested, because only one seed is scored: {_listed(untested)}."
    metric = next((line.metric for line in choice.scored), "")
    if any(abs((line.value or 0) - (line.score or 0)) > 0.05 for line in choice.scored):
        yield f"Methods are compared by their mean score over rows, which is not {metric}."
    above = [c.label for c in results.candidates if any(c.budgets.values())]
    if above:
        yield f"Above a budget, because no smaller size of the method exists: {_listed(above)}."
    if not search.trials:
        yield "No learning rate was searched: each method has its own default."
    else:
        ended = [(search.pruned, "stopped early"), (search.diverged, "diverged")]
        rest = "".join(f", {count} of them {how}" for count, how in ended if count)
        trials = _counted(search.trials, "trial")
        yield f"The search for learning rates took {duration(search.seconds)}: {trials}{rest}."


def _incomplete(results: Results) -> Iterator[str]:
    """A sentence if runs are missing that could have been run."""
    seeds = results.asked.get("seeds")
    runnable = [c for c in results.candidates if not c.plan.get("reason")]
    count = len(seeds) if isinstance(seeds, list) else 0
    scored, planned = sum(len(c.runs) for c in runnable), count * len(runnable)
    if scored < planned:
        yield (
            f"The comparison is not complete: {scored} of {planned} runs are scored. "
            "The notes say what is missing."
        )


def _detectable(choice: Choice, tested: Sequence[Candidate]) -> Iterator[str]:
    """The smallest difference that so many rows and seeds could have shown."""
    if len(tested) < 2:
        return
    seeds = [len(c.runs) for c in tested]
    runs = f"{min(seeds)} to {max(seeds)}" if min(seeds) < max(seeds) else f"{seeds[0]}"
    scores = [c.scores for c in tested]
    pairs = len(tested) * (len(tested) - 1) // 2
    one, every = detectable(scores), detectable(scores, pairs)
    if every == 0:
        yield "All runs have the same scores."
        return
    losses = choice.scored[0].metric == LOSSES
    unit = "nats per token" if losses else "points"
    digits = 3 if losses else 1
    text = (
        f"With {_counted(scores[0].shape[1], 'row')} and {runs} seeds a difference under "
        f"{one:.{digits}f} {unit} between two candidates cannot be told from chance"
    )
    more = f"; among all {pairs} pairs, which share the errors, one under {every:.{digits}f} {unit}"
    yield f"{text}{more if pairs > 1 else ''}."


def _compared_with(scored: Sequence[Line], against: str) -> Iterator[str]:
    """Which candidates are better and worse than the method that they are tested against."""
    tested = [line for line in scored if line.p_against is not None]
    if not tested:
        return
    references = {line.label: line.score or 0.0 for line in scored}
    found = [line for line in tested if (line.p_against or 0.0) < ALPHA]
    sides = {
        "better": [one.label for one in found if (one.score or 0.0) > references[one.against]],
        "worse": [one.label for one in found if (one.score or 0.0) <= references[one.against]],
    }
    said = [f"{how} by more than chance: {_listed(names)}" for how, names in sides.items() if names]
    yield f"Against {against}, {'; '.join(said) or 'no difference is larger than chance'}."


def _shown(score: float | None, line: Line) -> str:
    """A score with its unit: percent, or minus the loss in nats per token."""
    if score is None:
        return "none"
    return f"{score:.3f} (minus the loss)" if line.metric == LOSSES else f"{score:.1f}%"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return ", ".join(labels[:NAMED]) + more
