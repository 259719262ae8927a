"""Says in plain English what came out of a comparison and what limits it; how scores are written.

Scores here are as they are shown: a loss or an error as it is, and the lower one is better.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lorada.compare.read_results import CandidateResult, Results
from lorada.compare.stored_plan import Search
from lorada.decision.decision_record import Decision
from lorada.decision.run_variances import TINY
from lorada.decision.score_units import PERCENT as PERCENT_UNIT
from lorada.decision.statistics import ALPHA, detectable, rows_needed
from lorada.support.files import as_typed
from lorada.support.in_words import counted
from lorada.support.metric_names import ERROR, LOSS, lower_is_better, rows_metric
from lorada.support.row_sources import CODE

POWERS = "74 to 84 %"  # of a difference that ``detectable`` gives, measured: docs/compare.md
TIMES = 4  # as many steps are to be tried where nothing was learned
NAMED = 6  # labels that a sentence names at most


class Scale(NamedTuple):
    """How scores by a metric are written."""

    title: str  # what is compared, for headings and axes
    unit: str  # what a score counts, and which end is better if it is the lower one
    form: str  # the format of a number
    behind: str = ""  # the unit behind a score
    gap: str = ""  # and behind a difference


PERCENT = Scale("score", "percent", ".1f", "%", " points")
# Per token; of classes and choices per row.
LOSSES = Scale("loss", "nats, less is better", ".3f", " nats", " nats")
ERRORS = Scale("mean error", "the unit of the rows, less is better", ".4g")


def scale_of(metric: str, own_unit: str) -> Scale:
    """How scores by a metric are written; ``own_unit`` is that of a user's function, if known."""
    by = rows_metric(metric)
    if by == LOSS:
        return LOSSES
    if by == ERROR:
        return ERRORS
    if CODE in by and own_unit != PERCENT_UNIT:
        behind = f" {own_unit}" if own_unit else ""
        return Scale("score", own_unit or f"what {by} gives", ".4g", behind, behind)
    return PERCENT


def windows_overlap(metric: str) -> bool:
    """Whether rows are windows of one text that share tokens, so that no test of rows is right."""
    return metric.startswith("perplexity_")


def score_of(one: CandidateResult, scale: Scale) -> str:
    """A candidate's score with its unit."""
    return f"{one.score or 0.0:{scale.form}}{scale.behind}"


def _gap(gap: float, scale: Scale) -> str:
    return f"{gap:{scale.form}}{scale.gap}"


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return ", ".join(labels[:NAMED]) + more


def verdict(
    decision: Decision | None, top: CandidateResult | None, scale: Scale, results: Results
) -> str:
    """The result in a few sentences; where nothing was learned, with what to do.

    ``top`` has the best score, if there is a result; ``scale`` is how scores are written.
    """
    if decision is None and top is None:
        return "Too few runs are scored yet for a result."
    if decision is None and top is not None:
        return _untested(top, scale, results)
    sentence = decision.sentence if decision else ""
    if decision is None or decision.pick or not decision.highest:
        return sentence
    steps = results.plan.steps
    more = f"more steps (max_steps={TIMES * steps})" if steps else "more steps"
    lengths = results.plan.train_lengths
    whole = lengths.whole if lengths is not None and lengths.losses else None
    first = "" if whole is None else f"whole rows (max_length={whole}), "
    rest = "other learning rates (--rates) or more rows"
    return f"{sentence} Compare again with {first}{more}, {rest}."


def _untested(top: CandidateResult, scale: Scale, results: Results) -> str:
    """The best score where no decision can be made, and why."""
    end = "lowest" if lower_is_better(top.metric) else "highest"
    best = f"{top.label} has the {end} {scale.title}, {score_of(top, scale)}, but"
    if results.rows_without_loss:
        known = len(results.rows)
        rows = known + results.rows_without_loss
        return (
            f"{best} only {known} of {rows} held-out rows have a loss, as the answers of the "
            "others lie beyond max_length: compare again with a larger max_length."
        )
    needs = "more held-out rows"
    if windows_overlap(top.metric):
        needs = "windows that share no tokens"
    return f"{best} that may be chance: a test needs {needs}."


def beside_the_loss(lines: Sequence[CandidateResult]) -> str:
    """What a decision by the loss leaves out, where texts are answered: how the answers are.

    Empty for another metric, or where no answers are written.
    """
    scored = [line for line in lines if line.score is not None]
    if not scored or rows_metric(scored[0].metric) != LOSS:
        return ""
    exact = {
        line.label: [each.scores.get("exact_match") for each in line.metrics] for line in scored
    }
    means = {label: [v for v in values if v is not None] for label, values in exact.items()}
    if not all(means.values()):
        return ""
    shown = _listed([f"{label} {sum(v) / len(v):.1f} %" for label, v in means.items()])
    metrics = [each for line in scored for each in line.metrics]
    cut = sum(each.cut for each in metrics)
    answers = sum(each.n for each in metrics)
    were_cut = f" {cut} of {answers} written answers were cut." if cut else ""
    return (
        "This compares the loss on the right answers, not the answers that are written; exact "
        f"match of these is: {shown}.{were_cut}"
    )


def limits(
    results: Results,
    lines: Sequence[CandidateResult],
    decision: Decision | None,
    tested: Sequence[CandidateResult],
) -> Iterator[str]:
    """What limits the verdict, a sentence each.

    ``lines`` are the candidates, the best score first; ``tested`` those with enough seeds and rows,
    with their scores by row or group.
    """
    scored = [line for line in lines if line.score is not None]
    metric = next((line.metric for line in scored), "")
    yield from _incomplete(results)
    if results.plan.overlap:
        yield (
            f"{counted(results.plan.overlap, 'held-out row')} can be learned by heart, as the "
            "training rows have them too: scores are too high."
        )
    yield from results.plan.losses
    yield from _scored_by(results)
    why_untested = decision.no_letters if decision else ""
    if decision is None or not why_untested or why_untested not in decision.sentence:
        yield from _too_few_rows(results) or _power(results, metric, tested)
    yield from _failures_not_excluded(decision)
    if results.asked.until is not None:
        yield (
            "Runs went where the choice was least certain, so p-values are descriptive: go by the "
            "expected losses."
        )
    yield from _other_metric(metric, scored)
    yield from _other_winner_by_loss(results, metric, scored, decision)
    above = [one.label for one in results.candidates if any(one.candidate.budgets.values())]
    if above:
        yield f"Above a budget, because no smaller size of the method exists: {_listed(above)}."
    yield from _learning_rates(results)


def _incomplete(results: Results) -> Iterator[str]:
    """A sentence if runs are missing that could have been run."""
    runnable = [one for one in results.candidates if not one.candidate.reason]
    planned = len(results.asked.seeds) * len(runnable)
    scored = sum(len(one.runs) for one in runnable)
    if results.runs_left or (scored < planned and results.asked.until is None):
        yield (
            f"The comparison is not complete: {scored} of {planned} runs are scored. The table "
            "says what is missing."
        )


def _scored_by(results: Results) -> Iterator[str]:
    """Why answers are scored by this metric, and which of them were cut."""
    own = results.plan.metric
    if own is not None and own.reason and own.name == results.metric:
        yield f"Answers are scored by {own.name.replace('_', ' ')}, because {own.reason}."
    said = []
    for one in results.candidates:
        cut = [each for each in one.metrics if each.cut]
        limits = " or ".join(dict.fromkeys(str(each.max_new_tokens) for each in cut))
        count, answers = sum(each.cut for each in cut), sum(each.n for each in one.metrics)
        said += [f"{one.label} {count} of {answers} at {limits} tokens"] if cut else []
    if said:
        yield f"Answers were cut before they had ended: {_listed(said)}."


def _other_metric(metric: str, scored: Sequence[CandidateResult]) -> Iterator[str]:
    """A sentence if the main metric is no mean over rows, so that methods are compared by another.

    A metric that is only computed from stored answers is always a mean over rows.
    """
    names = metric.split("/")
    by = "/".join(dict.fromkeys(map(rows_metric, names)))
    if by == metric and len(names) == 1:
        return
    values = [(line.value, line.score) for line in scored]
    if any(v is not None and s is not None and abs(v - s) > 0.05 for v, s in values):
        what = "score" if by == metric else by.replace("_", " ")
        yield f"Methods are compared by their mean {what} over rows, which is not {metric}."


def _other_winner_by_loss(
    results: Results, metric: str, scored: Sequence[CandidateResult], decision: Decision | None
) -> Iterator[str]:
    """A sentence if the loss names another best method than the score does."""
    if decision is None or decision.pick is None or rows_metric(metric) == LOSS:
        return
    losses = {line.label: float(line.losses.mean()) for line in scored if line.losses.size}
    if len(losses) < len(scored) or not np.isfinite([*losses.values()]).all():
        return
    highest = str(decision.highest)
    lowest = min(losses, key=losses.__getitem__)
    if losses[highest] - losses[lowest] < TINY:
        return
    command = as_typed("lorada", "report", results.folder, "--metric", LOSS)
    form = LOSSES.form
    yield (
        f"The loss names another best method: {lowest} ({losses[lowest]:{form}} nats, and "
        f"{highest} {losses[highest]:{form}}). `{command}` compares by the loss."
    )


def _failures_not_excluded(decision: Decision | None) -> Iterator[str]:
    """How many runs of the method to take may fail, though none has (exact binomial bound)."""
    if decision is None or decision.pick is None or decision.pick in decision.diverged:
        return
    runs = decision.runs[decision.pick]
    allow = "allows" if runs == 1 else "allow"
    most = 100 * (1 - ALPHA ** (1 / runs))
    yield (
        f"{counted(runs, 'run')} of {decision.pick} without a failure still {allow} up to "
        f"{most:.0f} % of its runs to fail (95 % confidence)."
    )


def _too_few_rows(results: Results) -> list[str]:
    """A sentence if no difference between candidates could be shown, whatever their scores."""
    count, (rows, what) = sum(len(one.runs) > 1 for one in results.candidates), results.units
    needed = rows_needed(count * (count - 1) // 2) if count > 1 else 0
    return [
        f"With {counted(rows, what)} no difference between candidates can be significant: it takes "
        f"{needed} {what}s or more."
    ] if rows < needed else []  # fmt: skip


def _power(results: Results, metric: str, tested: Sequence[CandidateResult]) -> Iterator[str]:
    """The smallest difference that so many rows and seeds could have shown."""
    if len(tested) < 2:
        return
    seeds = [len(one.runs) for one in tested]
    runs = f"{min(seeds)} to {max(seeds)}" if min(seeds) < max(seeds) else f"{seeds[0]}"
    scores = [one.scores for one in tested]
    pairs = len(tested) * (len(tested) - 1) // 2
    scale = scale_of(metric, results.own_unit.name)
    one, every = detectable(scores), detectable(scores, pairs)
    if every == 0:
        return
    count, what = results.units
    right_or_wrong = all(np.isin(each, (0.0, 100.0)).all() for each in scores)
    if right_or_wrong:  # so many rows must differ that the test can find anything
        one = max(one, 100 * rows_needed() / count)
        every = max(every, 100 * rows_needed(pairs) / count)
    rows = counted(count, what) + (f" of {len(results.rows)} rows" if what == "group" else "")
    corrected = ""
    if pairs > 1 and (not right_or_wrong or every < 100):
        corrected = f", or of {_gap(every, scale)} with the correction for all {pairs} pairs"
    yield (
        f"With {rows} and {runs} seeds the test of two candidates has a power of "
        f"about {POWERS} to detect a difference of {_gap(one, scale)}{corrected}."
    )


def _at_edge(search: Search) -> bool:
    """Whether the chosen rate, or that of the map, is the lowest or highest of those tried."""
    trials = [trial for trial in search.trials if trial.choice == search.choice]
    rates = [trial.rate for trial in trials if trial.map_factor == 1.0]
    if rates and search.rate in (min(rates), max(rates)):
        return True
    factors = [trial.map_factor for trial in trials if trial.rate == search.rate]
    return len(factors) > 1 and search.map_factor in (min(factors), max(factors))


def _learning_rates(results: Results) -> Iterator[str]:
    """How learning rates were chosen, and which of them are at an end of the tried ones."""
    if not any(one.search is not None and one.search.trials for one in results.candidates):
        asked, given = results.asked, results.asked.rates
        if any(map(asked.is_searched, asked.methods)):
            yield "No search for a learning rate is finished yet."
            return
        said = f"all train at {given[0]:g}" if given else "each method has its own default"
        yield f"No learning rate was searched: {said}."
        return
    yield (
        "Differences are those at the chosen learning rates: the standard deviation over seeds "
        "does not include that choice."
    )
    for one in results.candidates:
        if one.chosen:
            count = len(one.candidate.choices)
            yield f"Of {count} settings of {one.label} the rows set aside chose {one.chosen}."
    edge = [one.label for one in results.candidates if one.search and _at_edge(one.search)]
    if edge:
        yield (
            "The best learning rate is still the lowest or the highest of those tried, so another "
            f"may be better: {_listed(edge)}."
        )
