"""The answers of a run to some rows, and those of an earlier scoring in their place.

They stand in for new answers only where rows, settings and weights are the same: a hash of all that
answers depend on, and of the answers themselves, is kept with the metrics.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorada.data.rows.rows import Rows
from lorada.data.task import Metrics
from lorada.inference.generate import generation_settings
from lorada.inference.load import Run
from lorada.runs.machine import versions
from lorada.runs.result import Prediction, read_predictions, read_result
from lorada.support.files import json_text
from lorada.support.metric_names import LOSS
from lorada.support.row_sources import HEADED

logger = logging.getLogger(__name__)

# Fields of a recipe that change no answer but by the rows and the weights, which are compared.
NO_CONDITIONS = {"output", "metric", "data", "eval_data", "data_dir", "columns", "from_adapter",
                 "chat_template"}  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """What a model answers to some rows.

    Attributes:
        values: the answer to each row; of plain text what is known of each window.
        losses: of each row or window in nats; None for a row without one.
        mean_loss: the ``loss`` of all rows; empty where it is not among the metrics.
        cut: whether each answer was cut, where texts are written.
    """

    values: Sequence[Any]
    losses: Sequence[float | None]
    mean_loss: Metrics
    cut: Sequence[bool] | None


def conditions_of(run: Run, rows: Rows, *, base: bool) -> str:
    """All that the answers of a run to some rows depend on, as one hash."""
    generation = None
    if rows.form not in (*HEADED, "choice", "text"):  # which are answered without a text
        protocol = rows.protocol if rows.protocol.generation else None
        generation = generation_settings(run, protocol=protocol)
    conditions = {
        "rows": (rows.fingerprint, rows.indices),
        "recipe": run.recipe.model_dump(exclude=NO_CONDITIONS),
        "labels": run.labels,
        "generation": generation,
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
    hashes = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".md":
            with path.open("rb") as file:
                content_hash = hashlib.file_digest(file, "sha256").hexdigest()
            hashes.append((str(path.relative_to(folder)), content_hash))
    return hashes


def _files_of(model: str, revision: str | None) -> Any:
    """The revision of a model on the hub; of a folder its files with sizes and times.

    They may be many gigabytes, so they are not read. A file that was written again has another
    time.
    """
    folder = Path(model)
    if not folder.is_dir():
        return revision
    sizes_and_times = []
    for path in sorted(folder.iterdir()):
        if path.is_file():
            stat = path.stat()
            sizes_and_times.append((path.name, stat.st_size, stat.st_mtime_ns))
    return sizes_and_times


def hash_of(conditions: str, predictions: Iterable[Prediction]) -> str:
    """The hash of answers, as predictions have them, and of all that they depend on."""
    answers = []
    for prediction in predictions:
        answers.append([prediction.row, prediction.answer, prediction.loss, prediction.cut])
    return hashlib.sha256((conditions + json_text(answers)).encode()).hexdigest()


def stored_answers(run: Run, rows: Rows, name: str, conditions: str) -> Answers | None:
    """The answers of an earlier scoring under the same conditions, or None.

    ``name`` is that of the rows in the run's results.
    """
    metrics = read_result(run.folder).metrics.get(name)
    if metrics is None or metrics.answers_sha256 is None:
        return None
    # The file has the predictions of all rows that the run was scored on.
    all_predictions = read_predictions(run.folder)
    predictions = [prediction for prediction in all_predictions if prediction.rows == name]
    if metrics.answers_sha256 != hash_of(conditions, predictions):
        return None
    by_number = {prediction.row: prediction for prediction in predictions}
    in_order = [by_number[rows.number(index)] for index in range(len(rows.rows))]
    # The loss of choices is no metric of its own.
    mean_loss = {} if rows.form == "choice" else {LOSS: metrics.scores[LOSS]}
    cut = None
    if rows.form not in (*HEADED, "choice"):
        cut = [prediction.cut for prediction in in_order]
    logger.info("%s: the answers are those of the scoring before, as rows, settings and weights "
                "are the same", name)  # fmt: skip
    return Answers(
        [prediction.answer for prediction in in_order],
        [prediction.loss for prediction in in_order],
        mean_loss,
        cut,
    )
