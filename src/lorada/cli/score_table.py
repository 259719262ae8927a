"""What a terminal shows of methods: a line for each, which fits however long the names are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorada.cli.app import console, print_json
from lorada.support.files import as_typed
from lorada.support.tables import NOTHING

HEAD = ("", "{} ± 95 %", "expected loss", "parameters", "")
LEAST = 12  # letters of a name
GAP = "  "
# Name, score, ends of its interval, expected loss, trained parameters, and what is decided.
Scored = tuple[str, float | None, float | None, float | None, float | None, float | None, str]


def score_table(what: str, form: str, rows: Sequence[Scored], width: int) -> list[str]:
    """The lines of the table: ``what`` heads the scores, ``form`` is the format of numbers."""
    table = [[one.format(what) for one in HEAD], *(_cells(row, form) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    widths[0] = max(LEAST, min(widths[0], width - sum(len(GAP) + one for one in widths[1:])))
    return [
        GAP.join([
            shortened(name, widths[0]).ljust(widths[0]),
            *(cell.rjust(space) for cell, space in zip(cells, widths[1:-1], strict=True)),
            mark,
        ]).rstrip()
        for name, *cells, mark in table
    ]  # fmt: skip


def _cells(row: Scored, form: str) -> list[str]:
    name, score, low, high, loss, parameters, mark = row
    shown = NOTHING if score is None else format(score, form)
    if score is not None and low is not None and high is not None:
        shown += f" ± {max(high - score, score - low):{form}}"
    counted = NOTHING if parameters is None else f"{parameters:,.0f}"
    return [name, shown, NOTHING if loss is None else format(loss, form), counted, mark]


def shortened(name: str, width: int) -> str:
    """A name in so many letters: what is left out is in the middle."""
    name = " ".join(name.split())
    if len(name) <= width:
        return name
    end = (width - 1) // 2
    return f"{name[: width - 1 - end]}…{name[len(name) - end :]}"


def show_report(summary: Any, reports: list[Path], *, as_json: bool) -> None:
    """Print the verdict, the table, the files of the report and the next command."""
    if as_json:
        print_json(summary.plain())
        return
    console.print(summary.verdict, highlight=False, markup=False)
    rows = [
        (one.label, one.score, one.low, one.high, one.expected_loss, one.trainable, one.mark)
        for one in summary.scored
    ]  # fmt: skip
    rows += [
        (one.name, one.score, one.low, one.high, None, None, "")
        for one in summary.baselines if one.score is not None
    ]  # fmt: skip
    for line in score_table(summary.scale.title, summary.scale.form, rows, console.width):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    missing = [
        f"{one.label}: {str(one.reason).removeprefix(f'{one.method} ')}"
        for one in summary.lines if one.score is None
    ]  # fmt: skip
    for sentence in (*missing, *summary.sentences):
        console.print(f"• {sentence}", highlight=False, markup=False)
    console.print(", ".join(map(str, reports)), highlight=False, soft_wrap=True)
    see = as_typed("python", "-m", "webbrowser", reports[0])
    following = next(iter(summary.commands.values()), see)
    console.print(f"next: {following}", highlight=False, soft_wrap=True)
