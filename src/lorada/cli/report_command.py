"""The command ``report``: writes the report of a comparison again, without training."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorada.cli.app import Json, Remote, app, console, importing, print_json
from lorada.cli.compare_command import Against, Margin, Metric, Text
from lorada.cli.score_table import score_table
from lorada.support.files import as_typed


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="folder of a comparison")],
    metric: Metric = None,
    against: Against = None,
    margin: Margin = None,
    with_text: Text = False,
    remote: Remote = False,
    as_json: Json = False,
) -> None:
    """Write a comparison's report again, perhaps by another metric; nothing is trained."""
    from lorada.cli.checks import check_reported

    if metric is not None and check_reported(folder, metric):
        with importing(quiet=as_json):
            from lorada.compare.rescore import rescore

        rescore(folder, metric, trust_remote_code=remote)
    from lorada.compare.report.page import write_report

    found = write_report(folder, against, with_text, metric, margin)
    show_report(*found, as_json=as_json)


def show_report(summary: Any, reports: list[Path], *, as_json: bool) -> None:
    """Print the verdict, the table, the files of the report and the next command."""
    from lorada.compare.report.words import number_form, title_of

    if as_json:
        print_json(summary.plain())
        return
    console.print(summary.verdict, highlight=False, markup=False)
    rows = [
        (one.label, one.score, one.low, one.high, one.expected_loss, one.trainable, one.mark)
        for one in summary.lines if one.score is not None
    ]  # fmt: skip
    rows += [
        (one.name, one.score, one.low, one.high, None, None, "")
        for one in summary.baselines if one.score is not None
    ]  # fmt: skip
    for line in score_table(
        title_of(summary.metric), number_form(summary.metric), rows, console.width
    ):
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
