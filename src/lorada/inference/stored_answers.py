"""The answers of a run to some rows, and those of an earlier scoring in their place.

They stand in for new answers only where rows, settings and weights are the same: a hash of all that
answers depend on, and of the answers themselves, is kept with the metrics.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lorada.data.task import Metrics
from lorada.data.task_rows import Rows
from lorada.inference.generate import generation_settings
from lorada.inference.load import Run
from lorada.runs.result import Prediction, read_predictions, read_result, versions
from lorada.support.files import json_text
from lorada.support.metric_names import LOSS
from lorada.support.row_sources import HEADED

logger = logging.getLogger(__name__)

# Fields of a recipe that change no answer but by the rows and the weights, which are compared.
NO_CONDITIONS = {"output", "metric", "data", "eval_data", "data_dir", "columns", "from_adapter",
                 "chat_template"}  # fmt: skip


class Answers(NamedTuple):
    """What a model answers to some rows."""

    values: list[Any]  # of each row
    losses: Sequence[float | None]  # of each row in nats, None for a row without one
    mean: Metrics  # the loss of all rows, if it is among the metrics
    cut: list[bool] | None  # whether each was cut, where texts are written


def conditions_of(run: Run, rows: Rows, *, base: bool) -> str:
    """All that the answers of a run to some rows depend on, as one hash."""
    writes = rows.form not in (*HEADED, "choice", "text")
    protocol = rows.protocol if rows.protocol.generation else None
    conditions = {
        "rows": (rows.fingerprint, rows.indices),
        "recipe": run.recipe.model_dump(exclude=NO_CONDITIONS),
        "labels": run.labels,
        "generation": generation_settings(run, protocol=protocol) if writes else None,
        "template": getattr(run.tokenizer, "chat_template", None),
        "adapter_is_on": not base,
        "adapter": _content_of(run.folder / "adapter"),
        "model": _files_of(run.config.name_or_path, getattr(run.config, "_commit_hash", None)),
        "device": run.device.type,
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(conditions, sort_keys=True, default=str).encode()).hexdigest()


def _content_of(folder: Path) -> list[tuple[str, str]]:
    """The files of an adapter, each with the hash of its content; its card changes no answer."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".md":
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            found.append((str(path.relative_to(folder)), content))
    return found


def _files_of(model: str, revision: str | None) -> Any:
    """The revision of a model on the hub; of a folder its files with sizes and times.

    They may be many gigabytes, so they are not read. A file that was written again has another
    time.
    """
    folder = Path(model)
    if not folder.is_dir():
        return revision
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file():
            stat = path.stat()
            found.append((path.name, stat.st_size, stat.st_mtime_ns))
    return found


def hash_of(conditions: str, predictions: Iterable[Prediction]) -> str:
    """The hash of answers, as predictions have them, and of all that they depend on."""
    answers = [[each.row, each.answer, each.loss, each.cut] for each in predictions]
    return hashlib.sha256((conditions + json_text(answers)).encode()).hexdigest()


def stored_answers(run: Run, rows: Rows, name: str, conditions: str) -> Answers | None:
    """The answers of an earlier scoring under the same conditions, or None.

    ``name`` is that of the rows in the run's results.
    """
    metrics = read_result(run.folder).metrics.get(name)
    if metrics is None or metrics.answers_sha256 is None:
        return None
    predictions = [each for each in read_predictions(run.folder) if each.rows == name]
    if metrics.answers_sha256 != hash_of(conditions, predictions):
        return None
    by_number = {prediction.row: prediction for prediction in predictions}
    in_order = [by_number[rows.number(index)] for index in range(len(rows.rows))]
    has_loss = rows.form != "choice"  # whose loss is no metric of its own
    writes = rows.form not in (*HEADED, "choice")
    logger.info("%s: the answers are those of the scoring before, as rows, settings and weights "
                "are the same", name)  # fmt: skip
    return Answers(
        [prediction.answer for prediction in in_order],
        [prediction.loss for prediction in in_order],
        {LOSS: metrics.scores[LOSS]} if has_loss else {},
        [prediction.cut for prediction in in_order] if writes else None,
    )
