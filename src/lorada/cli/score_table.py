"""The table of scores that ``lorada compare``, ``report`` and ``decide`` print, and its letters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from lorada.cli.shared import console
from lorada.support.in_words import counted
from lorada.support.tables import NOTHING

if TYPE_CHECKING:
    from lorada.decision.decision_record import Decision
    from lorada.decision.score_format import ScoreFormat

SHARED = "Methods that share a letter of a group are not significantly different"
LEAST_NAME_WIDTH = 12  # characters of a name that stay in a line, however narrow the terminal


@dataclass(frozen=True)
class ScoreLine:
    """A line of the table of scores, of a method or of what needs no training."""

    name: str
    score: float | None
    low: float | None = None  # ends of its 95 % interval
    high: float | None = None
    letters: str = ""
    expected_loss: float | None = None
    parameters: float | None = None  # that are trained
    mark: str = ""  # what is decided of it


def show_scores(title: str, score_format: "ScoreFormat", lines: Sequence[ScoreLine]) -> None:
    """Print the table of scores, as wide as its numbers need; ``title`` heads the scores.

    Where the terminal is too narrow, rich may fold names (the first column), never numbers.
    """
    heads = ["", f"{title} ± 95 %", "group", "expected loss", "parameters", ""]
    rows = [_score_cells(line, score_format) for line in lines]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("", overflow="fold")  # long names are folded where there is no room
    for head in heads[1:-1]:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Rich would cut numbers to fit a narrow terminal. So the table has a width of its own there:
    # names of LEAST_NAME_WIDTH, all numbers, and two spaces between columns.
    name_width, *other_widths = widths
    least_width = min(LEAST_NAME_WIDTH, name_width) + sum(other_widths) + 2 * len(other_widths)
    if least_width > console.width:
        table.width = least_width
    console.print(table, crop=False)


def _score_cells(line: ScoreLine, score_format: "ScoreFormat") -> list[str]:
    """The cells of a line of the table, in the order of its heads; what is unknown is a dash."""
    score = loss = parameters = NOTHING
    if line.score is not None:
        score = score_format.number(line.score)
        if line.low is not None and line.high is not None:
            # Intervals of shares are wider on one side; the wider one is shown.
            half_width = max(line.high - line.score, line.score - line.low)
            score += f" ± {score_format.number(half_width)}"
    if line.expected_loss is not None:
        loss = score_format.short_loss(line.expected_loss)
    if line.parameters is not None:
        parameters = f"{line.parameters:,.0f}"
    return [line.name, score, line.letters or NOTHING, loss, parameters, line.mark]


def what_was_tested(row_count: int, groups: Sequence[str] | None, decision: "Decision") -> str:
    """How many rows and runs were tested, and how to read the letters or why there are none.

    Args:
        row_count: of each run.
        groups: of each row; None where rows are independent.
        decision: which methods differ.
    """
    rows = counted(row_count, "row")
    if groups is not None:
        rows += f" in {len(set(groups))} groups"
    fewest, most = min(decision.runs.values()), max(decision.runs.values())
    runs = counted(most, "run") if fewest == most else f"{fewest} to {most} runs"
    rows_and_runs = f"{rows}, {runs} of each method"
    if any(decision.letters.values()):
        return f"{rows_and_runs}. {SHARED} (t-tests, corrected for all pairs by Holm's method)."
    if decision.no_letters in decision.sentence:  # the reason is said above
        return f"{rows_and_runs}."
    return f"{rows_and_runs}. {decision.no_letters}"
