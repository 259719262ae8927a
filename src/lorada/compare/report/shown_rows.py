"""The held-out rows that a report shows: wrong with all methods, unstable, and divided.

The page lies on the machine of whoever compares, so it has the rows with their texts: those that
the runs have stored, or the files read again. ``report.json`` goes to other programs and places and
has them only if that is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lorada.compare.held_out_rows import AskedRow, read_held_out, stored_texts
from lorada.compare.read_results import CandidateResult, Results, RowKey
from lorada.compare.report.row_disagreements import Disagreement, disagreements, shown_name
from lorada.compare.row_findings import RowFinding, find_rows
from lorada.support.metric_names import FREE

MOST_FINDINGS = 10  # rows of a finding that a report shows


@dataclass(frozen=True)
class ShownRows:
    """The held-out rows that a report shows.

    Attributes:
        wrong: rows that no method gets right, or most runs in the same wrong way, those whose label
            is most surely wrong first.
        unstable: rows that most methods get right with some seeds and wrong with others, without
            those above.
        divided: rows that some methods get right and others do not, the most divided first.
        no_texts: why their texts are not shown; empty if they are.
        answers_are_texts: whether the answers of runs are free texts, which may say what rows say.
        texts_in_json: whether ``report.json`` has the texts too.
    """

    wrong: tuple[RowFinding, ...] = ()
    unstable: tuple[RowFinding, ...] = ()
    divided: tuple[Disagreement, ...] = ()
    no_texts: str = ""
    answers_are_texts: bool = False
    texts_in_json: bool = False

    @property
    def have_texts(self) -> bool:
        """Whether the text of any of them is known."""
        texts = [row.text for row in (*self.wrong, *self.unstable)]
        texts += [row.text or "" for row in self.divided]
        return any(texts)

    def for_json(self) -> "ShownRows":
        """The rows as ``report.json`` has them."""
        return self if self.texts_in_json else self.without_texts()

    def without_texts(self) -> "ShownRows":
        """The same rows without their texts, right answers and free answers."""
        divided = [replace(row, text=None, answer=None) for row in self.divided]
        return replace(
            self,
            wrong=tuple(self._without_text(row) for row in self.wrong),
            unstable=tuple(self._without_text(row) for row in self.unstable),
            divided=tuple(divided),
        )

    def _without_text(self, row: RowFinding) -> RowFinding:
        wrong_answer = "" if self.answers_are_texts else row.wrong_answer
        return replace(row, text="", right="", wrong_answer=wrong_answer)


def shown_rows(
    results: Results, candidates: Sequence[CandidateResult], with_text: bool | None
) -> ShownRows:
    """The rows to show of a comparison.

    Args:
        results: the comparison.
        candidates: those with runs, in the order in which they are named.
        with_text: True to have texts in ``report.json`` too, False to have none anywhere, None to
            have them on the page alone.
    """
    findings = find_rows(results, {})
    wrong, unstable = _first_findings(() if findings is None else findings.rows)
    divided = disagreements(results, candidates)
    if not (wrong or unstable or divided):
        return ShownRows()
    texts: Mapping[RowKey, AskedRow] = {}
    no_texts = "the report was asked for without them (--no-text)"
    if with_text is not False:
        texts, no_texts = _texts(results)
    rows = ShownRows(
        wrong=tuple(_finding_with_text(results, row, texts) for row in wrong),
        unstable=tuple(_finding_with_text(results, row, texts) for row in unstable),
        divided=tuple(_disagreement_with_text(results, row, texts) for row in divided),
        no_texts=no_texts,
        answers_are_texts=candidates[0].first_run.result.form in FREE,
        texts_in_json=with_text is True,
    )
    return rows.without_texts() if with_text is False else rows


def _first_findings(rows: Sequence[RowFinding]) -> tuple[list[RowFinding], list[RowFinding]]:
    """The first rows that all runs get wrong, or most in the same way, and the unstable others."""
    wrong, unstable = [], []
    for row in rows:
        if "wrong everywhere" in row.findings or "same wrong answer" in row.findings:
            wrong.append(row)
        elif "unstable" in row.findings:
            unstable.append(row)
    return wrong[:MOST_FINDINGS], unstable[:MOST_FINDINGS]


def _texts(results: Results) -> tuple[Mapping[RowKey, AskedRow], str]:
    """The texts of the held-out rows, or why there are none: a report is written all the same."""
    stored = stored_texts(results)
    if stored:
        return stored, ""
    try:
        return read_held_out(results), ""
    except (ValueError, OSError, ImportError) as error:
        return {}, " ".join(str(error).split())


def _finding_with_text(
    results: Results, row: RowFinding, texts: Mapping[RowKey, AskedRow]
) -> RowFinding:
    name = shown_name(results, row.rows)
    asked = texts.get((row.rows, row.row))
    if asked is None:
        return replace(row, rows=name)
    return replace(row, rows=name, text=asked.text, right=asked.right_in_words)


def _disagreement_with_text(
    results: Results, row: Disagreement, texts: Mapping[RowKey, AskedRow]
) -> Disagreement:
    name = shown_name(results, row.rows)
    asked = texts.get((row.rows, row.row))
    if asked is None:
        return replace(row, rows=name)
    return replace(row, rows=name, text=asked.text, answer=asked.right_in_words)
