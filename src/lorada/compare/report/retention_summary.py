"""What a report says of gain and retention: the numbers of each method, and the sentences."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lorada.compare.read_results import CandidateResult, Results
from lorada.compare.report.baseline_scores import ScoredBaseline
from lorada.compare.report.score_scale import PERCENT, Scale
from lorada.compare.retention import (
    Interval,
    KeptTables,
    Retention,
    loses_more_than,
    read_kept_tables,
    retentions,
)
from lorada.compare.scale_findings import ScaleFinding, ScaleFindings, find_scales
from lorada.data.rows.kept_rows import GENERAL
from lorada.support.in_words import counted
from lorada.support.tables import NOTHING

NAMED = 4  # methods that a sentence names at most
DECIMALS = 2  # of nats a token


@dataclass(frozen=True)
class RetentionSummary:
    """Gain and retention of the methods of a comparison.

    Attributes:
        rows: how many rows to keep were scored.
        files: their names, without folders.
        over: the best score without training, above which gains are; empty without one.
        methods: what each gains and loses, in the order of the report's lines.
        scales: of the pick; None where it was not scored at smaller ones.
        sentences: what stands out.
        reason: why nothing was measured on rows to keep; empty if something was.
    """

    rows: int = 0
    files: tuple[str, ...] = ()
    over: str = ""
    methods: tuple[Retention, ...] = ()
    scales: ScaleFindings | None = None
    sentences: tuple[str, ...] = ()
    reason: str = ""

    def of(self, method: str) -> Retention:
        """That of a candidate, by its label."""
        for retention in self.methods:
            if retention.method == method:
                return retention
        return Retention(method)

    def plain(self) -> dict[str, Any]:
        """What ``report.json`` has of it; the sentences are among those of the report."""
        fields = asdict(self)
        del fields["sentences"]
        return fields


def summarize_retention(
    results: Results,
    ran: Sequence[CandidateResult],
    best: str,
    baselines: Sequence[ScoredBaseline],
    scale: Scale,
) -> RetentionSummary:
    """Gain and retention of the candidates that have runs.

    Args:
        results: the comparison.
        ran: candidates with runs, the best first.
        best: the label of the one to take; empty if there is none.
        baselines: the scores without training.
        scale: how its scores are written.
    """
    tables = read_kept_tables(results)
    baseline = best_of(baselines)
    without_training = None if baseline is None else baseline.row_scores
    share = scale is PERCENT
    methods = retentions(ran, tables, without_training, results.groups, share=share)
    pick = next((candidate for candidate in ran if candidate.label == best), None)
    scales = None
    if pick is not None:
        scales = find_scales(results, pick, tables, without_training, share=share)
    summary = RetentionSummary(
        rows=tables.rows,
        files=tuple(Path(name).name.removeprefix("builtin:") for name in results.plan.kept.rows),
        over="" if baseline is None else baseline.shown.name,
        methods=tuple(methods),
        scales=scales,
        reason=tables.reason,
    )
    sentences = _sentences(results, summary, tables, best, scale)
    return replace(summary, sentences=tuple(sentences))


def best_of(baselines: Sequence[ScoredBaseline]) -> ScoredBaseline | None:
    """The baseline with the highest mean score; None if none has scores."""
    scored = [baseline for baseline in baselines if baseline.row_scores is not None]
    return max(scored, key=lambda one: float(_mean(one)), default=None)


def _mean(baseline: ScoredBaseline) -> float:
    return 0.0 if baseline.row_scores is None else float(baseline.row_scores.mean())


def _sentences(
    results: Results, summary: RetentionSummary, tables: KeptTables, best: str, scale: Scale
) -> Iterator[str]:
    """What the pick loses, which methods lose more than others, and what smaller scales do."""
    if summary.reason:
        return
    rows = f"{counted(summary.rows, 'row')} to keep ({', '.join(summary.files)})"
    if list(results.plan.kept.rows) == [GENERAL]:
        rows = f"{counted(summary.rows, 'row')} of general skills"
    lost_by_pick = summary.of(best).lost
    if lost_by_pick is not None:
        yield _of_pick(best, lost_by_pick, rows)
        rows = "them"  # the sentence before has named them
    yield from _of_others(summary, tables, best, rows)
    if summary.scales is not None:
        yield from _of_scales(summary.scales, scale)


def _of_pick(best: str, lost: Interval, rows: str) -> str:
    """What the pick loses, and on which rows."""
    if lost.low > 0:
        return f"Elsewhere {best} loses {lost_in_words(lost)} nats a token, on {rows}."
    if lost.high < 0:
        return f"Elsewhere {best} gains {lost_in_words(lost.turned)} nats a token, on {rows}."
    return (
        f"Elsewhere {best} is not shown to lose anything: {lost_in_words(lost)} nats a token, on "
        f"{rows}."
    )


def _of_others(
    summary: RetentionSummary, tables: KeptTables, best: str, rows: str
) -> Iterator[str]:
    """Which methods are shown to lose something, and significantly more than others.

    A method may gain elsewhere, and one that gains less loses nothing. The sentences name the pick
    and the method that loses the most; the groups of the table have the others.
    """
    measured = [one for one in summary.methods if one.lost is not None]
    losing = [one.method for one in measured if one.lost is not None and one.lost.low > 0]
    if len(measured) < 2:
        return
    if not losing:
        yield f"No method is shown to lose anything on {rows}."
        return
    worse = loses_more_than(tables)
    losing_more = [method for method in worse if method in losing]
    named = [method for method in losing_more if method == best]
    named += [method for method in losing_more if method != best][:1]
    for method in named:
        others = worse[method]
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        yield (
            f"{method} loses significantly more on {rows} than {', '.join(others[:NAMED])}{more}."
        )
    has_test = any(retention.letter for retention in summary.methods)
    if has_test and not losing_more:
        yield f"No method is shown to lose more than another on {rows}."


def _of_scales(scales: ScaleFindings, scale: Scale) -> Iterator[str]:
    """What stays and what is lost less at smaller scales, the largest of them first."""
    if scales.reason:
        yield f"{scales.method} was scored at no smaller scale: {scales.reason}."
    for finding in sorted(scales.at, key=lambda one: one.scale, reverse=True):
        yield (
            f"At {finding.scale:g} of its scale {scales.method} {_stays(finding, scale)} and "
            f"{_lost_less(finding)}."
        )


def _stays(finding: ScaleFinding, scale: Scale) -> str:
    if finding.share is not None:
        return f"keeps {100 * finding.share:.0f} % of the gain"
    change = finding.gain_change.value
    direction = "more" if change >= 0 else "less"
    return f"scores {scale.difference(abs(change))} {direction}"


def _lost_less(finding: ScaleFinding) -> str:
    change = finding.lost_change
    if change.high < 0:
        return f"loses {lost_in_words(change.turned)} nats less"
    if change.low > 0:
        return f"loses {lost_in_words(change)} nats more"
    return "is not shown to lose less"


def lost_in_words(interval: Interval) -> str:
    """Nats with the ends of their interval."""
    value, low, high = (_rounded(each) for each in (interval.value, interval.low, interval.high))
    return f"{value:.{DECIMALS}f} ({low:.{DECIMALS}f} to {high:.{DECIMALS}f})"


def _rounded(nats: float) -> float:
    return round(nats, DECIMALS) + 0.0  # 0 is added as -0 would be shown


def lost_cell(retention: Retention) -> str:
    """What a method loses elsewhere, in a table; above 0 is lost."""
    return NOTHING if retention.lost is None else lost_in_words(retention.lost)


def gain_cell(retention: Retention, scale: Scale) -> str:
    """What a method gains, in a table."""
    gain = retention.gain
    if gain is None:
        return NOTHING
    number = scale.score_format.number
    return f"{number(gain.value)} ({number(gain.low)} to {number(gain.high)})"
