"""The command ``rows``: what no method gets right, which parts of the rows are hard, the vote."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from lorada.cli import options as opt
from lorada.cli.several_models import saved_models
from lorada.cli.shared import app, console, print_json, say, suggest
from lorada.support.files import refuse_there, write_atomic
from lorada.support.in_words import counted
from lorada.support.tables import NOTHING

MOST_SHOWN = 10  # rows
LETTERS = 60  # of a text in the table


@app.command(rich_help_panel=opt.COMPARE)
def rows(
    folder: Annotated[Path, typer.Argument(help="folder of a comparison")],
    by: Annotated[
        list[str] | None,
        typer.Option(help="a field of the rows, to score parts of them by; may be repeated"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="file for all rows that runs get wrong, such as rows.csv")
    ] = None,
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
) -> None:
    """Show which held-out rows no method gets right, and which parts of them are hard."""
    if output is not None:
        if output.suffix.lower() != ".csv":
            raise ValueError(f"--output {output} is no .csv file: rename it")
        refuse_there(output, overwrite=overwrite)
    models = saved_models(folder)
    if models:
        first = next(iter(models.values()))
        raise ValueError(f"{folder} has several models: name one, such as {folder / first}")
    from lorada.compare.read_results import read_comparison
    from lorada.compare.rows_summary import rows_csv, summarize_rows

    summary = summarize_rows(read_comparison(folder), by or [])
    findings = summary.findings
    if output is not None:
        if findings is None:  # the first sentence says why there are none
            raise ValueError(f"--output {output}: {summary.sentences[0]}")
        write_atomic(output, rows_csv(findings))
    if as_json:
        print_json(asdict(summary))
        return
    for sentence in summary.sentences:
        console.print(f"• {sentence}")
    if findings is not None and findings.rows:
        _show_rows(findings.rows)
    from lorada.compare.report.score_scale import scale_of

    decimals = scale_of(summary.metric, "").score_format.decimals
    number_format = ".4g" if decimals is None else f".{decimals}f"
    if summary.slices:
        _show_slices(summary.slices, number_format)
    if summary.votes:
        _show_votes(summary.votes, number_format)
    if output is None:
        suggest("rows", folder, "--output", "rows.csv")
        return
    row_count = len(findings.rows) if findings else 0
    say(f"{output}: {counted(row_count, 'row')}")
    suggest("report", folder)


def _show_rows(findings: Sequence[Any]) -> None:
    """Print the first of the rows that runs get wrong, with the commonest wrong answer to each."""
    first_rows = findings[:MOST_SHOWN]
    table = Table(
        Column("row", justify="right"), "text", "right", "answered",
        Column("by runs", justify="right"), Column("p (right)", justify="right"),
        title=f"Wrong labels are likeliest at the top ({len(first_rows)} of {len(findings)} rows)",
    )  # fmt: skip
    for row in first_rows:
        texts = [
            shorten(text, LETTERS, placeholder=" …")
            for text in (row.text, row.right, row.wrong_answer)
        ]
        probability = NOTHING if row.probability is None else f"{row.probability:.2f}"
        table.add_row(str(row.row), *texts, f"{100 * row.same_wrong:.0f} %", probability)
    console.print(table)


def _show_slices(slices: Sequence[Any], number_format: str) -> None:
    """Print what methods score on parts of the rows: a line for each part, a column a method."""
    methods = list(dict.fromkeys(part.method for part in slices))
    table = Table(
        "rows", Column("number", justify="right"),
        *(Column(f"{name} ± 95 %", justify="right", overflow="fold") for name in methods),
        title="Parts of the rows (*: significantly worse than the rest)",
    )  # fmt: skip
    scores_of_slices: dict[tuple[str, str], list[Any]] = {}  # in each the methods in their order
    for part in slices:
        scores_of_slices.setdefault((part.by, part.value), []).append(part)
    for scores in scores_of_slices.values():
        cells = []
        for part in scores:
            mark = " *" if part.is_worse else ""
            interval = _with_half_width(part, number_format)
            cells.append(f"{interval}{mark}")
        table.add_row(scores[0].name, f"{scores[0].rows:,}", *cells)
    console.print(table)


def _with_half_width(scored: Any, number_format: str) -> str:
    """The score of a slice or a vote, and how far its interval reaches on the wider side."""
    half_width = max(scored.high - scored.score, scored.score - scored.low)
    return f"{scored.score:{number_format}} ± {half_width:{number_format}}"


def _show_votes(votes: Sequence[Any], number_format: str) -> None:
    """Print what the seeds of each method score together, and what an answer then costs."""
    table = Table(
        "method", Column("one run", justify="right"), Column("vote ± 95 %", justify="right"),
        Column("gain (95 % interval)", justify="right"), "decided by", "an answer takes",
        title="What the seeds of a method answer together",
    )  # fmt: skip
    for vote in votes:
        low, high = f"{vote.gain_low:{number_format}}", f"{vote.gain_high:{number_format}}"
        table.add_row(
            vote.method,
            f"{vote.alone:{number_format}}",
            _with_half_width(vote, number_format),
            f"{vote.gain:+{number_format}} ({low} to {high})",
            vote.by,
            f"{vote.runs} times as long",
        )
    console.print(table)
