"""Reads what lm-evaluation-harness writes with ``--log_samples``.

It is a file ``samples_TASK_DATE.jsonl`` with a line for each row and filter, in a folder of the
model's name, beside a file of totals that ends in the same date.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorada.decision.log_records import LM_EVAL, Log, LogRow, as_number, broken, parts_of, read_json

SAMPLES = "samples_"
NO_FILTER = "none"
# What a line has beside scores: old versions do not list the metrics.
FIELDS = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics",
    "doc_hash", "prompt_hash", "target_hash",
}  # fmt: skip
PERPLEXITY = "perplexity"
OF_PERPLEXITY = "A row has no perplexity of its own, but a log-likelihood: the higher the better"


@dataclass(frozen=True)
class _Totals:
    """What the file of totals says of a task."""

    model: str
    folder: str  # that lm-eval names by the model
    higher_is_better: dict[str, bool]  # metric → as of the total
    aggregations: dict[str, str]  # metric → how rows become a total, where it is said

    def is_perplexity(self, metric: str) -> bool:
        """Whether a metric is of all rows together, and each row has a log-likelihood."""
        return PERPLEXITY in (metric, self.aggregations.get(metric))


def is_sample(line: str) -> bool:
    """Whether a line of JSON is one that lm-eval writes."""
    return _sample(line) is not None


def _sample(line: str) -> dict[str, Any] | None:
    """A line of a file of samples; None for another line."""
    try:
        sample = json.loads(line)
    except ValueError:
        return None
    if not isinstance(sample, dict) or not {"doc_id", "resps"} <= sample.keys():
        return None
    return sample


def read_lm_eval(path: Path, folders: tuple[str, ...]) -> Log:
    """Read the rows of one task.

    Args:
        path: of the samples.
        folders: in which they lie, below the folder that the user named.

    Raises:
        ValueError: for a line that is no sample, and for two answers to one row.
    """
    task, _, date = path.stem.removeprefix(SAMPLES).rpartition("_")
    totals = _totals_beside(path, task, date)
    if folders and folders[-1] == totals.folder:
        folders = folders[:-1]
    samples = _samples(path)
    metrics = {}  # as lm-eval prints them → without the filter
    for sample in samples:
        for metric in _metrics_of(sample):
            metrics[_metric_name(metric, sample)] = metric
    return Log(
        tool=LM_EVAL,
        path=path,
        folders=folders,
        model=parts_of(totals.model),
        task=task or path.stem,
        rows=_rows(path, samples),
        lower_is_better={
            name: not totals.higher_is_better[metric] and not totals.is_perplexity(metric)
            for name, metric in metrics.items()
            if metric in totals.higher_is_better
        },
        remarks={
            name: OF_PERPLEXITY for name, metric in metrics.items() if totals.is_perplexity(metric)
        },
    )


def _samples(path: Path) -> list[dict[str, Any]]:
    """The lines of a file."""
    samples = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise broken(path, error) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        sample = _sample(line)
        if sample is None:
            raise broken(path, f"line {number} is no sample of lm-eval")
        samples.append(sample)
    return samples


def _rows(path: Path, samples: list[dict[str, Any]]) -> tuple[LogRow, ...]:
    """A row for each document, with the scores of all filters."""
    scores_of_rows: dict[str, dict[str, float]] = {}
    contents: dict[str, str] = {}
    filters_of_rows = set()
    for sample in samples:
        row, filter_name = str(sample["doc_id"]), sample.get("filter", NO_FILTER)
        if (row, filter_name) in filters_of_rows:
            raise ValueError(f"{path} has two answers for row {row}: leave one out")
        filters_of_rows.add((row, filter_name))
        contents[row] = str(sample.get("doc_hash", ""))
        scores = scores_of_rows.setdefault(row, {})
        for metric in _metrics_of(sample):
            score = as_number(sample.get(metric))
            if score is not None:
                scores[_metric_name(metric, sample)] = score
    return tuple(
        LogRow(row, scores, content=contents[row]) for row, scores in scores_of_rows.items()
    )


def _metrics_of(sample: dict[str, Any]) -> list[str]:
    """The metrics of a line."""
    listed = sample.get("metrics")
    if isinstance(listed, list):
        return [str(metric) for metric in listed]
    return [
        name
        for name, value in sample.items()
        if name not in FIELDS and as_number(value) is not None
    ]


def _metric_name(metric: str, sample: dict[str, Any]) -> str:
    """A metric as lm-eval prints it: ``exact_match,strict-match`` where answers are filtered."""
    filter_name = sample.get("filter", NO_FILTER)
    return metric if filter_name == NO_FILTER else f"{metric},{filter_name}"


def _totals_beside(path: Path, task: str, date: str) -> _Totals:
    """The totals of the same evaluation; without them only the model's name is known."""
    folder = path.parent.name
    beside = [file for file in sorted(path.parent.glob("*.json")) if file.stem.endswith(f"_{date}")]
    results = read_json(beside[0]) if date and beside else {}
    if not isinstance(results, dict) or not results:
        # In the folder's name, two underscores stand for a slash.
        return _Totals(folder.replace("__", "/"), folder if "__" in folder else "", {}, {})
    config = results.get("configs", {}).get(task, {})
    aggregations = {}
    for metric in config.get("metric_list") or []:  # a task in Python has none
        if isinstance(metric, dict) and "aggregation" in metric:
            aggregations[str(metric.get("metric"))] = str(metric["aggregation"])
    return _Totals(
        model=str(results.get("model_name", folder)),
        folder=str(results.get("model_name_sanitized", "")),
        higher_is_better=results.get("higher_is_better", {}).get(task, {}),
        aggregations=aggregations,
    )
