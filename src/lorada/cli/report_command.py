"""The command ``report``: writes the report of a comparison again, without training."""

from pathlib import Path
from typing import Annotated

import typer

from lorada.cli.app import Json, Remote, app, importing
from lorada.cli.compare_command import Against, Margin, Metric, Text
from lorada.cli.score_table import show_report


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
