"""Token ids of large sets of rows, kept among Hugging Face's datasets for the next run.

Nothing has to be told apart by hand: what the ids depend on is in the name of their folder, and
where it cannot be, nothing is kept. The folder may be deleted at any time.
"""

import errno
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import tokenizers
import transformers
from datasets import Dataset
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from lorada.runs.data.rows import Rows
from lorada.support.files import one_at_a_time, written_whole
from lorada.support.version import __version__
from lorada.tasks.tokenize import EncodeOptions

logger = logging.getLogger(__name__)

LEAST = 1_000_000  # characters of all rows; fewer are tokenised in about a second
COUNTS = "counts.json"
PLACES = ("name_or_path", "is_local", "local_files_only")  # where a tokenizer was found

# The code that makes the ids, as it was imported: its files may change while a process lives.
CODE = [
    (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
    for name in ("tasks/tokenize.py", "runs/data/dataset.py")
]

Encoding = tuple[Dataset | None, dict[str, int]]  # rows that were cut and dropped, by name


def kept(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    options: EncodeOptions,
    make: Callable[[], Encoding],
) -> Encoding:
    """What ``make`` gives, from the disk if it was there before."""
    size = sum(len(str(value)) for row in rows.rows for value in row.values())
    key = _key(rows, tokenizer, options) if size >= LEAST else None
    if key is None:
        return make()
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "lorada" / key
    found = _read(folder)
    if found is None:
        with one_at_a_time(folder):  # of the processes of one launch, the others read what it wrote
            found = _read(folder) or _made(folder, make, rows)
    return found


def _read(folder: Path) -> Encoding | None:
    try:
        counts = json.loads((folder / COUNTS).read_text())
        return Dataset.load_from_disk(str(folder), keep_in_memory=False), counts
    except (OSError, ValueError):  # not there, or not whole
        return None


def _made(folder: Path, make: Callable[[], Encoding], rows: Rows) -> Encoding:
    made, counts = make()
    if made is not None:
        try:
            with written_whole(folder) as fresh:
                made.save_to_disk(str(fresh))
                (fresh / COUNTS).write_text(json.dumps(counts))
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # another process has just kept the same
                logger.warning("the tokens of %s could not be kept for later: %s", rows.path, error)
    return made, counts


def _key(rows: Rows, tokenizer: PreTrainedTokenizerBase, options: EncodeOptions) -> str | None:
    """A hash of all that the ids depend on; None where some of it does not show itself."""
    if rows.form == "messages" and "strftime_now" in repr(tokenizer.chat_template):
        return None  # the template writes today's date
    shown = _shown(tokenizer)
    if shown is None:
        return None
    parts = [
        __version__, transformers.__version__, tokenizers.__version__, CODE,
        rows.fingerprint, rows.form, repr(options), shown,
    ]  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _shown(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """All that decides a tokenizer's ids besides transformers' own code; None if it is unknown."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(tokenizer).__module__.split(".")[0] != "transformers":
        return None  # code of a model's repository may do anything
    try:
        pipeline = json.loads(backend.to_str())
    except Exception:  # tokenizers raises no narrower one for a part written in Python
        return None
    for state in ("truncation", "padding"):  # left over from its last call
        pipeline.pop(state, None)
    settings = {
        name: value
        for name, value in tokenizer.init_kwargs.items()
        if name not in PLACES and not name.endswith("_file")  # what was in them is in the pipeline
    }
    # What may have been set since is told beside what it began with.
    parts = [
        type(tokenizer).__qualname__, pipeline, settings, tokenizer.special_tokens_map,
        tokenizer.split_special_tokens, tokenizer.chat_template, tokenizer.truncation_side,
        tokenizer.model_input_names, getattr(tokenizer, "src_lang", None),
        getattr(tokenizer, "tgt_lang", None),
    ]  # fmt: skip
    try:
        return json.dumps(parts, sort_keys=True, default=_plain)
    except TypeError:  # a setting that has no text of its own
        return None


def _plain(value: Any) -> str:
    if isinstance(value, AddedToken):
        return repr(value)
    raise TypeError(f"{value!r} may be written otherwise next time")
