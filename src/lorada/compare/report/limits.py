"""Says in plain English what limits a comparison's verdict, a sentence each."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from lorada.compare.decision import Decision
from lorada.compare.report.facts import cut_answers, tried_rates, unfound_classes
from lorada.compare.report.read import Results, ScoredCandidate
from lorada.compare.report.summary import CandidateLine, Search
from lorada.compare.report.units import shown_gap, windows_overlap
from lorada.compare.report.verdict import Losses, counted, hardly_fell
from lorada.compare.statistics import ALPHA, detectable, has_no_spread, rows_needed
from lorada.support.duration import duration
from lorada.support.metric_names import as_score, rows_metric

POWERS = "60 to 80 %"  # of a difference that ``detectable`` gives, measured: docs/compare.md
NAMED = 6  # labels that a sentence names at most


def limits(
    results: Results,
    lines: Sequence[CandidateLine],
    decision: Decision | None,
    losses: Losses,
    tested: Sequence[ScoredCandidate],
    against: str,
    search: Search,
) -> Iterator[str]:
    """What limits the verdict, a sentence each.

    Args:
        results: of the comparison.
        lines: of the candidates, the highest score first.
        decision: which of them to take; None if nothing can be tested.
        losses: of the training of what is taken.
        tested: the candidates with enough seeds and rows.
        against: the method that others are tested against.
        search: what the search for learning rates cost.
    """
    yield from _incomplete(results)
    yield from _scored_by(results)
    yield from _unfound(results.candidates)
    scored = [line for line in lines if line.score is not None]
    if decision is not None and decision.pick and losses is not None and hardly_fell(losses):
        yield (
            f"The training loss of {decision.pick} hardly fell, from {losses[0]:.2f} to "
            f"{losses[1]:.2f}: more steps or other learning rates may change the order."
        )
    yield from _without_spread(tested)
    metric = next((line.metric for line in scored), "")
    yield from _too_few_rows(results) or _detectable(metric, tested)
    yield from _compared_with(scored, against, decision.unlearned if decision else ())
    if windows_overlap(metric):
        yield (
            "Nothing is tested: the windows that are scored share tokens, so they are not "
            "independent rows."
        )
    if decision is not None and decision.untested:
        yield f"Not tested, because too few seeds are scored: {_listed(decision.untested)}."
    by = rows_metric(metric)
    if any(abs((line.value or 0) - as_score(line.score or 0, by)) > 0.05 for line in scored):
        what = "score" if by == metric else by.replace("_", " ")
        yield f"Methods are compared by their mean {what} over rows, which is not {metric}."
    above = [c.label for c in results.candidates if any(c.budgets.values())]
    if above:
        yield f"Above a budget, because no smaller size of the method exists: {_listed(above)}."
    yield from _learning_rates(results, search)


def _scored_by(results: Results) -> Iterator[str]:
    """Why answers are scored by this metric, and which of them were cut."""
    own = results.plan.get("metric")
    if isinstance(own, dict) and own.get("reason") and own.get("name") == results.metric:
        name = results.metric.replace("_", " ")
        yield f"Answers are scored by {name}, because {own['reason']}."
    found = [(c.label, *cut_answers(c.runs)) for c in results.candidates]
    said = [f"{name} {cut} of {n} at {limit} tokens" for name, cut, n, limit in found if cut]
    if said:
        yield f"Answers were cut before they had ended: {_listed(said)}."


def _unfound(candidates: Sequence[ScoredCandidate]) -> Iterator[str]:
    """Which classes are never found, and by whom."""
    found: dict[str, list[str]] = {}
    for candidate in candidates:
        for rows, runs in Counter(unfound_classes(candidate.runs)).items():
            of = counted(len(candidate.runs), "run")
            found.setdefault(rows, []).append(f"{candidate.label} ({runs} of {of})")
    for rows, labels in found.items():
        yield f"{rows} were found by {_listed(labels)}."


def _learning_rates(results: Results, search: Search) -> Iterator[str]:
    """How learning rates were chosen, and which of them are at an end of the tried ones."""
    if not search.trials:
        given = results.asked.get("rates")
        said = f"all train at {given[0]:g}" if given else "each method has its own default"
        yield f"No learning rate was searched: {said}."
        return
    if search.each_seed:
        yield "A learning rate was chosen with every seed: the spread over seeds holds the choice."
    else:
        yield (
            "Differences are those at the chosen learning rates: the spread over seeds does not "
            "include that choice."
        )
    for one in results.candidates:
        if one.plan.get("chosen"):
            count, found = len(one.plan["choices"]), _listed(one.plan["chosen"])
            yield f"Of {count} settings of {one.label} the rows set aside chose {found}."
    edge = [c.label for c in results.candidates if any(one.at_edge for one in tried_rates(c))]
    if edge:
        yield (
            "The best learning rate is still the lowest or the highest of those tried, so another "
            f"may be better: {_listed(edge)}."
        )
    ended = [(search.pruned, "stopped early"), (search.diverged, "diverged or failed")]
    rest = "".join(f", {count} of them {how}" for count, how in ended if count)
    trials = counted(search.trials, "trial")
    yield f"The search for learning rates took {duration(search.seconds)}: {trials}{rest}."


def _without_spread(tested: Sequence[ScoredCandidate]) -> Iterator[str]:
    """Which candidates are compared by a test over rows alone."""
    alike = [c.label for c in tested if has_no_spread(c.scores)]
    if len(alike) > 1:
        yield (
            "All runs of a candidate give the same answers, so that seeds tell nothing and the "
            f"exact sign test over rows compares them with each other: {_listed(alike)}."
        )


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


def _too_few_rows(results: Results) -> list[str]:
    """A sentence if no difference between candidates could be shown, whatever their scores."""
    count, rows = sum(len(c.runs) > 1 for c in results.candidates), len(results.rows)
    pairs = count * (count - 1) // 2
    if not pairs or rows >= rows_needed(pairs):
        return []
    few = f"{counted(rows, 'held-out row')} {'is' if rows == 1 else 'are'} too few"
    at_once = f"for {pairs} pairs of candidates at once " if pairs > 1 else ""
    return [
        f"{few} to tell any difference between candidates from chance, however large it is and "
        f"however many seeds there are: {at_once}it takes {rows_needed(pairs)} rows or more."
    ]


def _detectable(metric: str, tested: Sequence[ScoredCandidate]) -> Iterator[str]:
    """The smallest difference that so many rows and seeds could have shown."""
    if len(tested) < 2:
        return
    seeds = [len(c.runs) for c in tested]
    runs = f"{min(seeds)} to {max(seeds)}" if min(seeds) < max(seeds) else f"{seeds[0]}"
    scores = [c.scores for c in tested]
    pairs = len(tested) * (len(tested) - 1) // 2
    one, every = detectable(scores), detectable(scores, pairs)
    if every == 0:
        return
    rows = scores[0].shape[1]
    right_or_wrong = all(np.isin(each, (0.0, 100.0)).all() for each in scores)
    if right_or_wrong:  # so many rows must differ that the test can find anything
        one = max(one, 100 * rows_needed() / rows)
        every = max(every, 100 * rows_needed(pairs) / rows)
    yield (
        f"With {counted(rows, 'row')} and {runs} seeds the test of two candidates has a power of "
        f"about {POWERS} to detect a difference of {shown_gap(one, metric)}."
    )
    if pairs > 1 and (not right_or_wrong or every < 100):
        yield f"Corrected for all {pairs} pairs of candidates: {shown_gap(every, metric)}."


def _compared_with(
    scored: Sequence[CandidateLine], against: str, unlearned: Collection[str]
) -> Iterator[str]:
    """Which candidates are better and worse than the method that they are tested against.

    Those that have not learned are left out: they show nothing of the method.
    """
    tested = [line for line in scored if line.p_against is not None and line.label not in unlearned]
    if not tested:
        return
    references = {line.label: line.score or 0.0 for line in scored}
    budgets = {line.label: set(line.budget.split(", ")) for line in scored}
    apart = [
        f"{one.label} with {one.against}"
        for one in tested
        if not budgets[one.label] & budgets[one.against]
    ]
    found = [line for line in tested if (line.p_against or 0.0) < ALPHA]
    sides = {
        "better": [one.label for one in found if (one.score or 0.0) > references[one.against]],
        "worse": [one.label for one in found if (one.score or 0.0) <= references[one.against]],
    }
    said = [f"significantly {how}: {_listed(names)}" for how, names in sides.items() if names]
    yield f"Against {against}, {'; '.join(said) or 'none is significantly different'}."
    if apart:
        yield f"No {against} is tested at the budget of these, so another is: {_listed(apart)}."


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return ", ".join(labels[:NAMED]) + more
