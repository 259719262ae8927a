"""What ``lorada rows`` shows of a comparison: rows to look at, slices, votes, and their sentences.

Here, at the end, a loss or an error is turned into what users know it as: the lower one is better.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorada.compare.held_out_rows import form_of, read_held_out
from lorada.compare.read_results import CandidateResult, Results
from lorada.compare.report.row_disagreements import shown_name
from lorada.compare.report.score_scale import PERCENT
from lorada.compare.report.summarize_comparison import Summary, summarize
from lorada.compare.row_findings import RowFinding, RowFindings, find_rows
from lorada.compare.seed_votes import Vote, votes
from lorada.compare.slices import SliceScore, score_slices, slices_of
from lorada.support.in_words import counted
from lorada.support.metric_names import as_score, lower_is_better
from lorada.support.spreadsheet import spreadsheet_csv

MOST_ROWS = 0.5  # the share of rows; where more are wrong everywhere, nothing was learned
SHOWN_METHODS = 2  # of slices: the pick and the next best
COLUMNS = (
    "row", "text", "right_answer", "commonest_wrong_answer", "share_of_runs", "wrong_runs", "runs",
    "probability", "method_disagreement", "file",
)  # fmt: skip
HELD_OUT_ONLY = (
    "Only held-out rows are in this list, as runs know the answers of those that they learned from."
)


@dataclass(frozen=True)
class RowsSummary:
    """What single rows and parts of the rows show of a comparison.

    Attributes:
        metric: what methods are compared by.
        sentences: what stands out.
        findings: the rows that runs get wrong; None where answers are neither right nor wrong.
        slices: scores of slices, for the pick and the next best.
        votes: what the seeds of each method score together.
    """

    metric: str
    sentences: tuple[str, ...]
    findings: RowFindings | None
    slices: tuple[SliceScore, ...]
    votes: tuple[Vote, ...]


def summarize_rows(results: Results, fields: Sequence[str] = ()) -> RowsSummary:
    """Find the rows to look at, the slices and the votes of a comparison, and say what stands out.

    Scores are turned last, so that losses and errors are as users know them.

    Args:
        results: the comparison, finished or not.
        fields: of the rows, by which they are sliced too.

    Raises:
        ValueError: for a comparison without a finished run, for plain text, for rows that are not
            as they were, and for a field that no row has.
    """
    rows = read_held_out(results, with_fields=bool(fields))
    summary = summarize(results, with_text=False)  # which need not read the rows once more
    rows_in_order = [rows[key] for key in results.rows]  # as the columns of all scores
    is_share = summary.scale is PERCENT
    findings = find_rows(results, rows)
    if findings is not None:
        # A user calls the rows by their file's name, without its folder.
        named = [replace(row, rows=shown_name(results, row.rows)) for row in findings.rows]
        findings = replace(findings, rows=tuple(named))
    slices: list[SliceScore] = []
    if len(rows_in_order) > 1:
        slices = score_slices(
            slices_of(rows_in_order, form_of(results), fields),
            {shown.label: shown.scores for shown in pick_and_next(summary)},
            results.groups,
            share=is_share,
        )
    scored = [line.result for line in summary.scored]
    all_votes = votes(
        scored, results.rows, rows_in_order, summary.metric, results.groups, share=is_share
    )
    sentences = [*_finding_sentences(findings, summary.metric), *_slice_sentences(slices, summary)]
    return RowsSummary(
        summary.metric,
        tuple(sentences),
        findings,
        tuple(_slice_as_shown(part, summary.metric) for part in slices),
        tuple(_vote_as_shown(vote, summary.metric) for vote in all_votes),
    )


def pick_and_next(summary: Summary) -> list[CandidateResult]:
    """The candidate to take and the best of the others; the two best if none is to be taken."""
    scored = [line.result for line in summary.scored]
    pick = [candidate for candidate in scored if candidate.label == summary.best]
    others = [candidate for candidate in scored if candidate.label != summary.best]
    return [*pick, *others][:SHOWN_METHODS]


def _finding_sentences(findings: RowFindings | None, metric: str) -> list[str]:
    """What single rows show: how many are wrong everywhere, answered alike, divided, unstable.

    Where answers are neither right nor wrong (None), one sentence says so.
    """
    if findings is None:
        name = metric.replace("_", " ")
        return [f"By {name} no answer is right or wrong, so no rows are listed."]
    same_wrong = len(findings.of("same wrong answer"))
    differ = len(findings.of("methods differ"))
    unstable = len(findings.of("unstable"))
    sentences = [
        _wrong_everywhere_sentence(findings),
        f"Most runs give the same wrong answer to {counted(same_wrong, 'row')}; methods differ on "
        f"{differ}; {unstable} {_is_or_are(unstable)} right with some seeds and wrong with others, "
        "for most methods.",
    ]
    if findings.rows:
        sentences.append(HELD_OUT_ONLY)
    return sentences


def _wrong_everywhere_sentence(findings: RowFindings) -> str:
    """How many rows are wrong in all runs, and whether their labels are worth a look."""
    everywhere = findings.of("wrong everywhere")
    answered_alike = [row for row in everywhere if row.same_wrong == 1]
    runs = f"all {findings.runs} runs of {counted(findings.methods, 'method')}"
    if findings.runs == 1:
        runs = "the only run"
    rows = counted(findings.scored, "held-out row")
    sentence = f"Of {rows}, {len(everywhere)} {_is_or_are(len(everywhere))} wrong in {runs}"
    if len(everywhere) > MOST_ROWS * findings.scored:
        return f"{sentence}: what learned so little says little of labels."
    if not answered_alike:
        return f"{sentence}."
    how_many = str(len(answered_alike))
    if len(answered_alike) == len(everywhere):
        how_many = "all"
    return f"{sentence}, {how_many} of them with the same answer: look at these labels first."


def _is_or_are(count: int) -> str:
    """The verb behind a number of rows."""
    return "is" if count == 1 else "are"


def _slice_sentences(slices: Sequence[SliceScore], summary: Summary) -> list[str]:
    """A sentence for each slice that is significantly worse than the rest."""
    sentences = []
    for part in slices:
        if not part.is_worse:
            continue
        score = _score_in_words(part.score, summary)
        rest = _score_in_words(part.rest, summary)
        p = "p < 0.001" if part.p < 0.001 else f"p = {part.p:.3f}"
        rows = counted(part.rows, "row")
        sentences.append(
            f"{part.name}: {score} against {rest} for the other rows ({part.method}, {rows}, {p})."
        )
    return sentences


def _score_in_words(score: float, summary: Summary) -> str:
    """A score, higher for the better one, with its unit and as users know it."""
    return summary.scale.score(as_score(score, summary.metric))


def _slice_as_shown(part: SliceScore, metric: str) -> SliceScore:
    """A slice's scores as users know them: those of a loss or an error are turned."""
    if not lower_is_better(metric):
        return part
    return replace(part, score=-part.score, low=-part.high, high=-part.low, rest=-part.rest)


def _vote_as_shown(vote: Vote, metric: str) -> Vote:
    """A vote's scores as users know them: of a loss or an error turned; a gain stays a gain."""
    if not lower_is_better(metric):
        return vote
    return replace(vote, score=-vote.score, low=-vote.high, high=-vote.low, alone=-vote.alone)


def rows_csv(findings: RowFindings) -> str:
    """The rows that runs get wrong as a table, to relabel from the top."""
    return spreadsheet_csv(COLUMNS, [_cells(row) for row in findings.rows])


def _cells(row: RowFinding) -> list[str | int | float]:
    """The cells of a row in the order of ``COLUMNS``."""
    probability = "" if row.probability is None else round(row.probability, 4)
    return [
        row.row, row.text, row.right, row.wrong_answer, round(row.same_wrong, 4), row.wrong_runs,
        row.runs, probability, round(row.disagreement, 4), row.rows,
    ]  # fmt: skip
