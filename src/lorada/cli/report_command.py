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
    if metric is not None and _asks_answers(folder, metric):
        with importing(quiet=as_json):
            from lorada.compare.run import rescore

        rescore(folder, metric, trust_remote_code=remote)
    from lorada.compare.report.page import write_report

    found = write_report(folder, against, with_text, metric, margin)
    show_report(*found, as_json=as_json)


def _asks_answers(folder: Path, metric: str) -> bool:
    """Whether a metric has to be computed from the answers first; refuses one that does not fit."""
    from lorada.data.scoring import LATER, refuse_metric
    from lorada.runs.recipe import JSONL
    from lorada.runs.result import read_result
    from lorada.support.metric_names import LOSS
    from lorada.support.row_sources import CODE

    for path in folder.glob("runs/*/*/*/result.json"):
        result = read_result(path.parent)
        if result.get("task") == JSONL:
            refuse_metric(metric, result["form"])
        elif metric != LOSS:
            raise ValueError(f"--metric {metric} is for rows of your own: take loss")
    return CODE in metric or metric in LATER
