"""What answers at ``/v1/classify``: a run that labels or scores texts, or chooses a candidate."""

import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorada.data.dataset import encode_each, encode_options
from lorada.data.task_rows import Rows, rows_to_answer
from lorada.data.tokenize import EMPTY
from lorada.inference.load import Run, load_run
from lorada.inference.predict import predict
from lorada.inference.serving.records import Record
from lorada.inference.serving.requests import Refused
from lorada.runs.one_base import adapter_names
from lorada.support.row_sources import Row

LONGEST = 500  # characters of a line that may repeat a text


class Classifier:
    """A run that answers at ``/v1/classify`` as ``lorada predict`` does, one request at a time.

    It labels texts, in vLLM's form, gives them scores, or chooses among candidates.
    """

    def __init__(self, name: str, run: Run) -> None:
        self.name, self._run = name, run
        self.described = {"base": run.recipe.model, "method": run.recipe.method}
        what = {"score": "scores texts", "choice": "chooses among candidates"}
        self.does = what.get(run.form, f"labels texts {', '.join(run.labels)}")
        self._turn = threading.Lock()

    def classify(self, rows: list[Row], record: Record) -> dict[str, Any]:
        """The response to rows; probabilities are in the order of the run's classes.

        Raises:
            Refused: for a row that the run cannot read, is too long, or has no token that the model
                knows.
        """
        run = self._run
        try:
            asked = rows_to_answer(rows, "input", run.form, run.labels, pairs=run.pairs)
        except ValueError as error:
            said = " ".join(str(error).split())[:LONGEST]
            raise Refused(400, said, param="input") from error
        with self._turn:
            record.read = self._read(asked)
            found = [answer for part in predict(run, asked) for answer in part]
        data = [{"index": answer.pop("row") - 1, **answer} for answer in found]
        for one in data if run.form == "label" else ():
            one["probs"] = list(one["probs"].values())
            one["num_classes"] = len(run.labels)
        return {
            "id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()),
            "model": self.name, "data": data, "usage": record.usage,
        }  # fmt: skip

    def _read(self, rows: Rows) -> int:
        """The number of tokens in rows, none of which may be cut."""
        run, count = self._run, 0
        options = encode_options(rows, run.recipe, run.kind)
        for index, one in encode_each(rows, run.tokenizer, options):
            where = f"input row {index + 1}"
            if one is EMPTY:
                raise Refused(400, f"{where} has no token of this model", param="input")
            if one is None or one.truncated:
                said = f"{where} is longer than the {options.max_length} tokens that are read here"
                raise Refused(400, said, code="context_length_exceeded", param="input")
            parts = [one.features[name] for name in ("input_ids", "prompt") if name in one.features]
            count += sum(map(len, [*parts, *one.features.get("candidates", ())]))
        return count


def open_classifiers(
    folders: Sequence[Path], *, trust_remote_code: bool = False
) -> dict[str, Classifier]:
    """Load finished runs, each with a base of its own, by the names of their folders.

    Raises:
        ValueError: for a run that is not finished, or is given twice.
    """
    return {
        name: Classifier(name, load_run(folder, trust_remote_code=trust_remote_code))
        for name, folder in zip(adapter_names(folders), folders, strict=True)
    }
