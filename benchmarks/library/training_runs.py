"""What the scripts that train share: rows of real tasks, and runs that are not repeated."""

import gzip
import json
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from lorada.compare.jobs.job import Job
from lorada.compare.jobs.pool import Workers
from lorada.compare.jobs.queue import run_queue
from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.runs.recipe import Recipe
from lorada.runs.result import RESULT_FILE, RunResult, read_result
from lorada.support.files import write_atomic
from lorada.training.train import train

BOOLQ, SST2 = "BoolQ", "SST-2"
# By task: the folder of its rows, the split to train on and the split to score.
SOURCES = {
    BOOLQ: ("commonsense_llm_adapters/boolq", "train", "test"),
    SST2: ("glue/sst2", "train", "validation"),
}


def write_first_rows(
    data_dir: Path, task: str, file: Path, count: int, held_out: int
) -> dict[str, str]:
    """Write the first rows of a task, and the first ones of its held-out half.

    Args:
        data_dir: local folder of the benchmarks' rows.
        task: BoolQ becomes rows of ``prompt`` and ``response``, SST-2 of ``text`` and ``label``.
        file: where to write, with ``{}`` for the split.
        count: rows to train on.
        held_out: rows to score.

    Returns:
        The settings ``data`` and ``eval_data`` of a run on these rows.

    Raises:
        FileNotFoundError: if the folder has no rows of this task.
    """
    source, *splits = SOURCES[task]
    files = {}
    for key, split, size in zip(("data", "eval_data"), splits, (count, held_out), strict=True):
        path = data_dir / source / f"{split}.jsonl.gz"
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: --data-dir (or LORADA_DATA) must name its folder")
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [_row_of(task, json.loads(line)) for line in islice(lines, size)]
        files[key] = str(file).format(split)
        write_atomic(Path(files[key]), "".join(json.dumps(row) + "\n" for row in rows))
    return files


def _row_of(task: str, row: dict[str, Any]) -> dict[str, str]:
    if task == BOOLQ:
        return {"prompt": f"{row['instruction']}\n", "response": row["output"]}
    return {"text": row["sentence"], "label": str(row["label"])}


def finished_run(recipe: Recipe) -> RunResult:
    """Train and score a recipe, unless its folder has a finished run; return the result."""
    folder = Path(recipe.output)
    if not (folder / RESULT_FILE).is_file():
        work = partial(train, recipe, overwrite=True, quiet=True)
        job = Job(folder.name, work, folder, (folder / RESULT_FILE).is_file)
        run_queue([job], Workers(), report=print)
    if not read_result(folder).metrics:
        evaluate(load_run(folder))
    return read_result(folder)
