"""Makes the summary of a comparison from its results: scores, tests, costs and commands."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lorada.compare.decide import by_seed, enough_runs
from lorada.compare.decision import Decision
from lorada.compare.letters import letters
from lorada.compare.report.commands import BESIDE, LONGER, by_loss, commands_of, longer, pair_of
from lorada.compare.report.facts import (
    facts_of,
    history_of,
    machines_of,
    main_metric_of,
    search_of,
    seeds_of,
    tried_rates,
    version_notes,
)
from lorada.compare.report.limits import limits
from lorada.compare.report.read import Results, ScoredCandidate
from lorada.compare.report.summary import Baseline, CandidateLine, Disagreement, Summary
from lorada.compare.report.units import title_of, windows_overlap
from lorada.compare.report.verdict import decided, same_for_all, training_losses, verdict
from lorada.compare.statistics import (
    ALPHA,
    TINY,
    Common,
    Scores,
    has_no_spread,
    holm,
    mean_score,
    paired_p,
    rows_needed,
)
from lorada.support.errors import unknown_name
from lorada.support.metric_names import ERROR, LOSS, as_score, lower_is_better, rows_metric

Line = TypeVar("Line", CandidateLine, Baseline)
FREE = {"prompt", "messages"}  # forms of rows that are answered with a free text
MOST_ROWS = 50  # disagreements that a report shows
RIGHT, WRONG = 100.0, 0.0  # scores of rows that are right or wrong
BASELINES = {"as_it_is": "the model as it is", "commonest": "the commonest answer"}


def summarize(
    results: Results,
    against: str | None = None,
    with_text: bool = False,
    margin: float | None = None,
) -> Summary:
    """Summarize a comparison, finished or not.

    Args:
        results: what there is of it.
        against: the method that others are tested against; by default the one that the comparison
            names, or its first.
        with_text: whether rows on which candidates disagree come with their text, if it is stored.
        margin: that a cheaper candidate may cost; None for the comparison's own.

    Raises:
        ValueError: if ``against`` is no method of the comparison, or for a margin below 0.
    """
    chosen = _against(results, against)
    ran = [c for c in results.candidates if c.runs]
    scored = sorted(ran, key=lambda c: float(c.scores.mean()), reverse=True)
    metric = results.metric or main_metric_of([run for one in scored for run in one.runs])
    tested = _tested(scored, metric)
    baselines = _baselines(results, metric)
    lines = _lines(results, scored, tested, _pairs(tested), chosen, metric)
    decision = decided(results, lines, baselines, metric, margin)
    search = search_of(results.candidates, results.asked.get("search") == "each-seed")
    histories = {c.label: history_of(c) for c in scored}
    again, top = longer(results), scored[0] if scored else None
    best = next((c for c in scored if decision is None or c.label == decision.pick), None)
    losses = training_losses(histories[(best or top).label]) if top else None
    pair = pair_of(results.folder, best, scored) if best else None
    runs = [run for candidate in scored for run in candidate.runs]
    said = verdict(decision, lines[0] if scored else None, losses, again[LONGER])
    commands = commands_of(results.folder, best, pair) if best else again
    if alike := _all_alike(results, scored, lines):
        said = f"{said} Yet {alike}" if best else alike
        commands = {"write the report by the loss": by_loss(results.folder), **commands}
    return Summary(
        verdict=said,
        sentences=tuple(limits(results, lines, decision, losses, tested, chosen, search)),
        model=_model(results),
        task=", ".join(dict.fromkeys(Path(name).name for name, _ in results.rows)),
        rows=len(results.rows),
        seeds=tuple(results.asked.get("seeds") or seeds_of(runs)),
        metric=metric,
        form=next((str(run.result.get("form", "")) for run in runs), ""),
        best=best.label if best else "",
        lines=tuple(_known(_as_shown(line, metric), decision) for line in lines),
        baselines=tuple(_as_shown(one, metric) for one, _ in baselines),
        margin=decision.margin if decision else None,
        histories=histories,
        disagreements=tuple(_disagreements(results, scored, with_text)),
        commands=commands,
        pages={BESIDE: pair.page.name} if pair and pair.is_shown() else {},
        search=search,
        tried={c.label: tried_rates(c) for c in results.candidates if c.searches},
        hardware=machines_of(results.plan, runs),
        versions={str(k): str(v) for k, v in (results.plan.get("versions") or {}).items()},
        notes=(*results.notes, *version_notes(runs)),
    )


def _model(results: Results) -> str:
    shared = results.asked.get("recipe")
    return str(shared.get("model", "")) if isinstance(shared, dict) else ""


def _all_alike(results: Results, scored: list[ScoredCandidate], lines: list[CandidateLine]) -> str:
    """Says that free answers of all runs have the same score in each row; empty if they differ."""
    forms = {run.result.get("form") for candidate in scored for run in candidate.runs}
    if len(scored) < 2 or rows_metric(lines[0].metric) == LOSS or not forms <= FREE:
        return ""
    if not has_no_spread(np.concatenate([candidate.scores for candidate in scored])):
        return ""
    losses = np.concatenate([candidate.losses for candidate in scored])
    differ = bool((np.ptp(losses, axis=0) > TINY).any())
    return same_for_all(lines[0], differ, by_loss(results.folder))


def _as_shown(line: Line, metric: str) -> Line:
    """A line as it is shown: the lower its loss or its error, the better."""
    if line.score is None or not lower_is_better(metric):
        return line
    low, high = (None if end is None else -end for end in (line.high, line.low))
    return replace(line, score=-line.score, low=low, high=high)


def _known(line: CandidateLine, decision: Decision | None) -> CandidateLine:
    """A line with what the decision knows of it."""
    if decision is None or line.label not in decision.scores:
        return line
    low, high = decision.intervals[line.label]
    loss = decision.expected_loss.get(line.label)
    return replace(line, low=low, high=high, expected_loss=loss)


def _pairs(tested: list[ScoredCandidate]) -> dict[frozenset[str], float]:
    """The corrected p-value of each pair of candidates, by their labels.

    There is none where so few rows could tell no pair apart, as then all would count as alike.
    """
    pairs = list(combinations(tested, 2))
    if pairs and tested[0].scores.shape[1] < rows_needed(len(pairs)):
        return {}
    common = Common.of([each.scores for each in tested])
    corrected = holm([_pair_p(a, b, common) for a, b in pairs])
    return {frozenset((a.label, b.label)): p for (a, b), p in zip(pairs, corrected, strict=True)}


def _pair_p(one: ScoredCandidate, other: ScoredCandidate, common: Common | None) -> float:
    """The p-value of two candidates, not corrected."""
    both = one, other
    seeds = {each.label: [run.seed for run in each.runs] for each in both}
    pairs = by_seed(one.label, other.label, seeds, {each.label: each.scores for each in both})
    return paired_p(one.scores, other.scores, common, pairs)


def _lines(
    results: Results,
    scored: list[ScoredCandidate],
    tested: list[ScoredCandidate],
    pairs: dict[frozenset[str], float],
    against: str,
    metric: str,
) -> list[CandidateLine]:
    """A line for each candidate, those with the highest score first."""
    different = {pair for pair, p in pairs.items() if p < ALPHA}
    groups = letters([c.label for c in tested], different) if pairs else {}
    compared = [(c, other) for c in tested if (other := _reference(c, tested, against))]
    references = {c.label: other.label for c, other in compared}
    common = Common.of([each.scores for each in tested])
    corrected = holm([_pair_p(c, other, common) for c, other in compared])
    p_against = dict(zip(references, corrected, strict=True))
    rest = [c for c in results.candidates if c not in scored]
    return [
        CandidateLine(
            **facts_of(candidate, metric),
            letter=groups.get(candidate.label, ""),
            against=references.get(candidate.label, ""),
            p_against=p_against.get(candidate.label),
            p_best=pairs.get(frozenset((candidate.label, tested[0].label))) if tested else None,
        )
        for candidate in [*scored, *rest]
    ]


def _reference(
    candidate: ScoredCandidate, tested: list[ScoredCandidate], against: str
) -> ScoredCandidate | None:
    """What a candidate is tested against: the method ``against``, if possible at the same budget.

    None for that method itself.
    """
    found = [c for c in tested if c.method == against]
    if candidate.method == against or not found:
        return None
    same = (c for c in found if c.budgets.keys() & candidate.budgets.keys())
    return next(same, found[0])


def _against(results: Results, against: str | None) -> str:
    """The method that others are tested against."""
    methods = list(dict.fromkeys(candidate.method for candidate in results.candidates))
    chosen = str(against or results.asked.get("against") or next(iter(methods), ""))
    if methods and chosen not in methods:
        raise unknown_name("method to compare with", chosen, methods)
    return chosen


def _tested(scored: list[ScoredCandidate], metric: str) -> list[ScoredCandidate]:
    """The candidates that are tested: with enough runs, and rows that are not windows of others."""
    least = enough_runs([len(each.runs) for each in scored])
    alone = not windows_overlap(metric)
    return [c for c in scored if alone and len(c.runs) >= least and c.scores.shape[1] > 1]


def _baselines(results: Results, metric: str) -> list[tuple[Baseline, Scores | None]]:
    """Each score without training, with the scores of its rows; None if it has none."""
    found: list[tuple[Baseline, Scores | None]] = []
    by = rows_metric(metric)
    names = BASELINES | ({"commonest": "the mean of the right numbers"} if by == ERROR else {})
    for key, name in names.items():
        entry = results.baselines.get(key)
        entry = entry if isinstance(entry, dict) else {"reason": "it is not scored yet"}
        scores = _row_scores(entry, by)
        whole = isinstance(scores, list) and 0 < len(scores) == len(results.rows)
        if whole and all(isinstance(score, int | float) for score in scores or []):
            by_row = np.array(scores, dtype=float)
            low, high = mean_score(by_row[None]).interval() if len(by_row) > 1 else (None, None)
            answer = entry.get("answer")
            text = None if answer is None else str(answer)
            found.append((Baseline(name, float(by_row.mean()), low, high, text), by_row))
        else:
            reason = str(entry.get("reason") or "it was scored on other rows")
            if scores is None and "answer" in entry:
                reason = f"an answer alone has no {title_of(metric)}"
            found.append((Baseline(name, reason=reason), None))
    return found


def _row_scores(entry: dict[str, Any], by: str) -> list[Any] | None:
    """The scores of the rows without training by a metric of rows; None if there are none."""
    stored = entry.get("row_scores")
    values = stored.get(by) if isinstance(stored, dict) else None
    if not isinstance(values, list):
        return None
    # Rows whose response lies beyond max_length have no loss, in no run.
    values = [value for value in values if value is not None] if by == LOSS else values
    return [as_score(v, by) if isinstance(v, int | float) else v for v in values]


def _disagreements(
    results: Results, scored: list[ScoredCandidate], with_text: bool
) -> list[Disagreement]:
    """The rows that divide the candidates most; none where rows are not right or wrong."""
    if not scored or not all(np.isin(c.scores, (RIGHT, WRONG)).all() for c in scored):
        return []
    right = np.array([c.scores.mean(axis=0) > (RIGHT + WRONG) / 2 for c in scored])
    count = right.sum(axis=0)
    divided = np.minimum(count, len(scored) - count)
    texts = {row: text for c in scored for run in c.runs for row, text in run.texts.items()}
    found = []
    for index in np.argsort(-divided, kind="stable")[:MOST_ROWS]:
        if divided[index]:
            name, number = row = results.rows[index]
            sides: dict[bool, list[str]] = {True: [], False: []}
            for candidate, is_right in zip(scored, right[:, index], strict=True):
                sides[bool(is_right)].append(candidate.label)
            text = texts.get(row, (None, None)) if with_text else (None, None)
            found.append(
                Disagreement(
                    Path(name).name, number, tuple(sides[True]), tuple(sides[False]), *text
                )
            )
    return found
