"""``lorada report``: writes the report of a comparison again from what is stored, without training.

A metric that is computed from answers only when it is asked for (ROUGE-L, chrF, the user's own) is
computed for the stored answers first, and kept beside the others.
"""

import json
from pathlib import Path

from lorada.compare.plan import about, saved_plan
from lorada.compare.run import BASELINES_FILE, read
from lorada.compare.spec import saved_comparison
from lorada.compare.trainings import RUNS, score_commonest
from lorada.data.scoring import RowValue, row_value
from lorada.inference.evaluate import BASE
from lorada.runs.result import read_predictions, write_predictions
from lorada.support.files import json_text, write_atomic
from lorada.support.row_sources import Row


def rescore(folder: Path, metric: str, *, trust_remote_code: bool = False) -> None:
    """Compute a metric for all stored answers of a comparison, and keep it with them.

    Raises:
        ValueError: if the rows are not those of the comparison any more, or as ``row_value``.
        FileNotFoundError: if they are not there.
    """
    comparison, value = saved_comparison(folder), row_value(metric)
    if value is None:  # it is stored already
        return
    comparison = comparison.model_copy(update={"trust_remote_code": trust_remote_code})
    _, data = read(comparison)
    plan = saved_plan(folder)
    if plan is None or (plan.train, plan.held_out) != about(data):
        raise ValueError(f"the rows are not those that {folder} was scored on: put them back")
    by_number: dict[str, dict[int, Row]] = {
        held_out: {rows.number(index): row for index, row in enumerate(rows.rows)}
        for held_out, rows in data.held_out.items()
    }
    name, base = Path(metric).name, list[float]()
    for run in sorted((folder / RUNS).glob("*/*/seed*")):
        untrained: list[float] = []
        for held_out, rows in by_number.items():
            _add(run, held_out, rows, name, value)
            untrained += _add(run, f"{held_out}{BASE}", rows, name, value)
        base = untrained or base  # of the one run whose model was scored as it is
    path = folder / BASELINES_FILE
    baselines = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = {"as_it_is": base, "commonest": score_commonest(data, metric)["row_scores"][name]}
    for key, values in found.items():
        if values and "row_scores" in baselines.get(key, {}):
            baselines[key]["row_scores"][name] = values
    write_atomic(path, json_text(baselines) + "\n")


def _add(run: Path, name: str, rows: dict[int, Row], metric: str, value: RowValue) -> list[float]:
    """Add the metric to the lines of some rows of a run; return its values, none without lines."""
    lines = [line for line in read_predictions(run) if line.pop("rows") == name]
    for line in lines:
        line["metrics"] = {
            **line.get("metrics", {}), metric: value(str(line["answer"]), rows[line["row"]])
        }  # fmt: skip
    if lines:
        write_predictions(run, name, lines)
    return [line["metrics"][metric] for line in lines]
