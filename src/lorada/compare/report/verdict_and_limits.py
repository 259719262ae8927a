"""Says in plain English what came out of a comparison, and what limits it."""

from collections.abc import Iterator, Sequence

import numpy as np

from lorada.compare.read_results import CandidateResult, Results
from lorada.compare.report.candidate_lines import CandidateLine
from lorada.compare.report.next_commands import by_loss_command
from lorada.compare.report.score_scale import LOSSES, scale_of, windows_overlap
from lorada.compare.stored_plan import Search
from lorada.decision.decision_record import Decision
from lorada.decision.run_variances import TINY
from lorada.decision.statistics import ALPHA, detectable, most_unseen, rows_needed
from lorada.support.in_words import counted
from lorada.support.metric_names import LOSS, lower_is_better, rows_metric

POWERS = "72 to 85 %"  # of a difference that ``detectable`` gives: docs/studies/decision.md
TIMES = 4  # as many steps are to be tried where nothing was learned
NAMED = 6  # labels that a sentence names at most
SAME_VALUE = 0.05  # points by which a metric may differ from the score and be called the same


def _listed(labels: Sequence[str]) -> str:
    """The first few of some labels, and how many more there are."""
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return ", ".join(labels[:NAMED]) + more


def verdict(decision: Decision | None, top: CandidateLine | None, results: Results) -> str:
    """The result in a few sentences; where nothing was learned, with what to do.

    ``top`` has the best score, if there is a result.
    """
    if decision is None:
        if top is None:
            return "Too few runs are scored yet for a result."
        return _undecided(top, results)
    # Without a pick but with a highest score, nothing was learned. Where there is no score at all,
    # the sentence of the decision is all that can be said.
    if decision.pick is not None or decision.highest is None:
        return decision.sentence
    steps = results.plan.steps
    more_steps = f"more steps (max_steps={TIMES * steps})" if steps else "more steps"
    whole_rows = ""
    lengths = results.plan.train_lengths
    if lengths is not None and lengths.losses and lengths.whole is not None:
        whole_rows = f"whole rows (max_length={lengths.whole}), "
    return (
        f"{decision.sentence} Compare again with {whole_rows}{more_steps}, other learning rates "
        "(--rates) or more rows."
    )


def _undecided(top: CandidateLine, results: Results) -> str:
    """The best score where no decision can be made, and why."""
    metric = top.measured.metric
    scale = scale_of(metric, results.own_unit.name)
    end = "lowest" if lower_is_better(metric) else "highest"
    best = f"{top.label} has the {end} {scale.title}, {scale.score(top.score or 0.0)}, but"
    if results.rows_without_loss:
        with_loss = len(results.rows)
        rows = with_loss + results.rows_without_loss
        return (
            f"{best} only {with_loss} of {rows} held-out rows have a loss, as the answers of the "
            "others lie beyond max_length: compare again with a larger max_length."
        )
    needs = "windows that share no tokens" if windows_overlap(metric) else "more held-out rows"
    return f"{best} that may be chance: a test needs {needs}."


def beside_the_loss(lines: Sequence[CandidateLine]) -> str:
    """What a decision by the loss leaves out, where texts are answered: how the answers are.

    Empty for another metric, or where no answers are written. ``lines`` are those with a score.
    """
    if not lines or rows_metric(lines[0].measured.metric) != LOSS:
        return ""
    shares, cut, answers = [], 0, 0
    for line in lines:
        exact = []
        for metrics in line.result.metrics:
            cut += metrics.cut
            answers += metrics.n
            exact_match = metrics.scores.get("exact_match")
            if exact_match is not None:
                exact.append(exact_match)
        if not exact:
            return ""
        shares.append(f"{line.label} {sum(exact) / len(exact):.1f} %")
    were_cut = f" {cut} of {answers} written answers were cut." if cut else ""
    return (
        "This compares the loss on the right answers, not the answers that are written; exact "
        f"match of these is: {_listed(shares)}.{were_cut}"
    )


def limits(
    results: Results,
    lines: Sequence[CandidateLine],
    decision: Decision | None,
    tested: Sequence[CandidateResult],
) -> Iterator[str]:
    """What limits the verdict, a sentence each.

    Args:
        results: the comparison.
        lines: the candidates with a score, the best first.
        decision: None where nothing can be decided.
        tested: the candidates with enough seeds and rows, with their scores by row or group.
    """
    metric = lines[0].measured.metric if lines else ""
    yield from _incomplete(results)
    if results.plan.overlap:
        yield (
            f"{counted(results.plan.overlap, 'held-out row')} can be learned by heart, as the "
            "training rows have them too: scores are too high."
        )
    yield from results.plan.losses
    yield from _scored_by(results)
    yield from _cut_answers(results)
    yield from _prompt_tokens(results)
    if not _verdict_says_too_few(decision):
        too_few_rows = _too_few_rows(results)
        if too_few_rows:
            yield from too_few_rows
        else:  # only where the rows could show a difference, it matters how small a one
            yield from _power(results, metric, tested)
    yield from _failures_not_excluded(decision)
    if results.asked.until is not None:
        yield (
            "Runs went where the choice was least certain, so p-values are descriptive: go by the "
            "expected losses."
        )
    yield from _other_metric(metric, lines)
    yield from _other_winner_by_loss(results, lines, decision)
    yield from _above_a_budget(results)
    yield from _learning_rates(results)


def _verdict_says_too_few(decision: Decision | None) -> bool:
    """Whether the decision's own sentence says already why no method has a letter."""
    if decision is None or not decision.no_letters:
        return False
    return decision.no_letters in decision.sentence


def _incomplete(results: Results) -> Iterator[str]:
    """A sentence if runs are missing that could have been run."""
    runnable = [one for one in results.candidates if not one.candidate.reason]
    planned = len(results.asked.seeds) * len(runnable)
    scored = sum(len(candidate.runs) for candidate in runnable)
    has_fewer = scored < planned
    time_ended = has_fewer and results.asked.hours is not None and not results.runs_left
    # With --until a comparison may end before all runs, as soon as it has seen enough.
    is_short_of_runs = has_fewer and not results.asked.may_leave_runs
    if time_ended:
        yield (
            f"{scored} of {planned} runs fitted into the time: with --resume and --hours, or "
            "without a time, the others are run."
        )
    elif results.runs_left or is_short_of_runs:
        yield (
            f"The comparison is not complete: {scored} of {planned} runs are scored. The table "
            "says what is missing."
        )


def _scored_by(results: Results) -> Iterator[str]:
    """Why answers are scored by this metric, where lorada chose it from the rows.

    Nothing is said of a benchmark (which has its own metric), of a metric that the user chose
    (which has no reason), and of a report by another metric than the planned one.
    """
    planned = results.plan.metric
    if planned is None or not planned.reason:
        return
    is_by_planned_metric = planned.name == results.metric
    if not is_by_planned_metric:
        return
    name = planned.name.replace("_", " ")
    yield f"Answers are scored by {name}, because {planned.reason}."


def _cut_answers(results: Results) -> Iterator[str]:
    """How many answers of each candidate were cut, and at how many tokens."""
    texts = []
    for candidate in results.candidates:
        with_cut = [metrics for metrics in candidate.metrics if metrics.cut]
        if not with_cut:
            continue
        cut = sum(metrics.cut for metrics in with_cut)
        answers = sum(metrics.n for metrics in candidate.metrics)
        # Runs that were scored at another time may have another limit.
        limits = dict.fromkeys(str(metrics.max_new_tokens) for metrics in with_cut)
        texts.append(f"{candidate.label} {cut} of {answers} at {' or '.join(limits)} tokens")
    if texts:
        yield f"Answers were cut before they had ended: {_listed(texts)}."


def _prompt_tokens(results: Results) -> Iterator[str]:
    """How long prompts with examples are, which every answer costs."""
    texts = []
    for baseline in results.baselines.values():
        if baseline.prompt_tokens is not None and baseline.row_scores:
            texts.append(f"{baseline.title} {baseline.prompt_tokens:.0f}")
    if texts:
        yield f"Tokens in a prompt on average, which every answer costs: {_listed(texts)}."


def _other_metric(metric: str, lines: Sequence[CandidateLine]) -> Iterator[str]:
    """A sentence if the main metric is no mean over rows, so that methods are compared by another.

    A metric that is only computed from stored answers is always a mean over rows.
    """
    names = metric.split("/")  # of several files of held-out rows: the metric of each
    by_rows = "/".join(dict.fromkeys(rows_metric(name) for name in names))
    is_mean_over_rows = by_rows == metric and len(names) == 1
    if is_mean_over_rows:
        return
    if any(line.value_differs(SAME_VALUE) for line in lines):
        what = "score" if by_rows == metric else by_rows.replace("_", " ")
        yield f"Methods are compared by their mean {what} over rows, which is not {metric}."


def _other_winner_by_loss(
    results: Results, lines: Sequence[CandidateLine], decision: Decision | None
) -> Iterator[str]:
    """A sentence if the loss names another best method than the score does."""
    if decision is None:
        return
    if (
        decision.pick is None or decision.highest is None
    ):  # nothing is taken, or nothing has a score
        return
    if rows_metric(lines[0].measured.metric) == LOSS:  # already compared by it, as perplexity is
        return
    losses = {}
    for line in lines:
        loss = float(line.result.losses.mean()) if line.result.losses.size else np.nan
        if not np.isfinite(loss):  # of one without a loss nothing can be said
            return
        losses[line.label] = loss
    # Not with the pick, which may be a cheaper method than that of the best score.
    highest, lowest = decision.highest, min(losses, key=losses.__getitem__)
    if losses[highest] - losses[lowest] < TINY:
        return
    number = LOSSES.score_format.number
    yield (
        f"The loss names another best method: {lowest} ({number(losses[lowest])} nats, and "
        f"{highest} {number(losses[highest])}). `{by_loss_command(results.folder)}` compares by "
        "the loss."
    )


def _above_a_budget(results: Results) -> Iterator[str]:
    """Which candidates train more parameters than a budget allows."""
    above = []
    for candidate in results.candidates:
        if any(candidate.candidate.budgets.values()):
            above.append(candidate.label)
    if above:
        yield f"Above a budget, because no smaller size of the method exists: {_listed(above)}."


def _failures_not_excluded(decision: Decision | None) -> Iterator[str]:
    """Which share of the pick's runs may fail though none of those here has.

    The share is the upper end of a 95 % confidence interval for 0 failures in so many runs (exact,
    of the binomial distribution). Of a pick with runs that diverged the sentence says so itself.
    """
    if decision is None or decision.pick is None:
        return
    has_failures = decision.pick in decision.diverged
    if has_failures:
        return
    runs = decision.runs[decision.pick]
    allow = "allows" if runs == 1 else "allow"
    yield (
        f"{counted(runs, 'run')} of {decision.pick} without a failure still {allow} up to "
        f"{100 * most_unseen(runs, ALPHA):.0f} % of its runs to fail (95 % confidence)."
    )


def _too_few_rows(results: Results) -> list[str]:
    """A sentence if no difference between candidates could be shown, whatever their scores."""
    candidates = sum(len(candidate.runs) > 1 for candidate in results.candidates)
    if candidates < 2:
        return []
    rows, what = results.units
    needed = rows_needed(candidates * (candidates - 1) // 2)
    if rows >= needed:
        return []
    return [
        f"With {counted(rows, what)} no difference between candidates can be significant: it takes "
        f"{needed} {what}s or more."
    ]


def _power(results: Results, metric: str, tested: Sequence[CandidateResult]) -> Iterator[str]:
    """The smallest difference that so many rows and seeds could have shown, of one and all pairs.

    Nothing is said where no two candidates are tested, or where runs have no spread at all.
    """
    if len(tested) < 2:
        return
    scores = [candidate.scores for candidate in tested]
    pairs = len(tested) * (len(tested) - 1) // 2
    of_one_pair, of_all_pairs = detectable(scores), detectable(scores, pairs)
    if of_all_pairs == 0:
        return
    count, what = results.units
    right_or_wrong = all(np.isin(table, (0.0, 100.0)).all() for table in scores)
    # Of right and wrong the sign test has its say too. It finds nothing, however steady the runs
    # are, unless ``rows_needed`` rows differ, and each of these is 100 / rows points.
    if right_or_wrong:
        of_one_pair = max(of_one_pair, 100 * rows_needed() / count)
        of_all_pairs = max(of_all_pairs, 100 * rows_needed(pairs) / count)
    scale = scale_of(metric, results.own_unit.name)
    corrected = ""
    can_be_shown = not right_or_wrong or of_all_pairs < 100  # no difference exceeds 100 points
    if pairs > 1 and can_be_shown:
        difference = scale.difference(of_all_pairs)
        corrected = f", or of {difference} with the correction for all {pairs} pairs"
    rows = counted(count, what)
    if what == "group":
        rows += f" of {len(results.rows)} rows"
    runs = [len(candidate.runs) for candidate in tested]
    seeds = f"{min(runs)} to {max(runs)}" if min(runs) < max(runs) else f"{runs[0]}"
    yield (
        f"With {rows} and {seeds} seeds the test of two candidates has a power of "
        f"about {POWERS} to detect a difference of {scale.difference(of_one_pair)}{corrected}."
    )


def _is_at_edge(search: Search) -> bool:
    """Whether the chosen rate, or that of the map, is the lowest or highest of those tried."""
    trials = [trial for trial in search.trials if trial.choice == search.choice]
    # Rates are compared where the map trains at the same one (factor 1), factors at the chosen
    # rate.
    rates = [trial.rate for trial in trials if trial.map_factor == 1.0]
    if rates and search.rate in (min(rates), max(rates)):
        return True
    factors = [trial.map_factor for trial in trials if trial.rate == search.rate]
    return len(factors) > 1 and search.map_factor in (min(factors), max(factors))


def _learning_rates(results: Results) -> Iterator[str]:
    """How learning rates were chosen, and which of them are at an end of the tried ones."""
    if not any(one.search is not None and one.search.trials for one in results.candidates):
        yield _no_search(results)
        return
    yield (
        "Differences are those at the chosen learning rates: the standard deviation over seeds "
        "does not include that choice."
    )
    at_edge = []
    for candidate in results.candidates:
        if candidate.chosen:
            settings = len(candidate.candidate.choices)
            yield (
                f"Of {settings} settings of {candidate.label} the rows set aside chose "
                f"{candidate.chosen}."
            )
        if candidate.search is not None and _is_at_edge(candidate.search):
            at_edge.append(candidate.label)
    if at_edge:
        yield (
            "The best learning rate is still the lowest or the highest of those tried, so another "
            f"may be better: {_listed(at_edge)}."
        )


def _no_search(results: Results) -> str:
    """By which learning rates methods trained, if none was searched."""
    asked = results.asked
    if any(asked.is_searched(method) for method in asked.methods):
        return "No search for a learning rate is finished yet."
    which = f"all train at {asked.rates[0]:g}" if asked.rates else "each method has its own default"
    return f"No learning rate was searched: {which}."
