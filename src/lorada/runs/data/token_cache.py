"""Caches the token ids of large sets of rows for the next run, in the cache folder of datasets.

The name of an entry is a hash of everything the ids depend on; if some of it is unknown, nothing is
cached. Entries may be deleted at any time. ``Dataset.map`` with a fingerprint would not do: a full
disk or a damaged entry ends the run, and the counts of rows that were cut or left out are lost.
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
from lorada.support.files import atomic_path, one_at_a_time
from lorada.support.version import __version__
from lorada.tasks.tokenize import EncodeOptions

logger = logging.getLogger(__name__)

LEAST = 1_000_000  # characters of rows worth caching; fewer are tokenised in about a second
COUNTS = "counts.json"
# Settings about where a tokenizer was found, not about what it does.
LOCATION = ("name_or_path", "is_local", "local_files_only")

# The code that makes the ids. It is read at import, as its files may change while a process runs.
CODE = [
    (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
    for name in ("tasks/tokenize.py", "runs/data/dataset.py")
]

Encoding = tuple[
    Dataset | None, dict[str, int]
]  # token ids, and how many rows were cut or left out


def cached(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    options: EncodeOptions,
    make: Callable[[], Encoding],
) -> Encoding:
    """What ``make`` returns: read from the cache, or made and then written to it."""
    size = sum(len(str(value)) for row in rows.rows for value in row.values())
    key = _key(rows, tokenizer, options) if size >= LEAST else None
    if key is None:
        return make()
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "lorada" / key
    found = _read(folder)
    if found is None:
        with one_at_a_time(folder):  # processes of one launch read what the first has written
            found = _read(folder) or _make(folder, make, rows)
    return found


def _read(folder: Path) -> Encoding | None:
    try:
        counts = json.loads((folder / COUNTS).read_text())
        return Dataset.load_from_disk(str(folder), keep_in_memory=False), counts
    except (OSError, ValueError):  # not there, or not whole
        return None


def _make(folder: Path, make: Callable[[], Encoding], rows: Rows) -> Encoding:
    made, counts = make()
    if made is not None:
        try:
            with atomic_path(folder) as fresh:
                made.save_to_disk(str(fresh))
                (fresh / COUNTS).write_text(json.dumps(counts))
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # another process has just written the same
                logger.warning("the tokens of %s could not be kept for later: %s", rows.path, error)
    return made, counts


def _key(rows: Rows, tokenizer: PreTrainedTokenizerBase, options: EncodeOptions) -> str | None:
    """A hash of everything the ids depend on; None if some of it is unknown."""
    if rows.form == "messages" and "strftime_now" in repr(tokenizer.chat_template):
        return None  # the chat template writes today's date
    state = _state_of(tokenizer)
    if state is None:
        return None
    parts = [
        __version__, transformers.__version__, tokenizers.__version__, CODE,
        rows.fingerprint, rows.form, repr(options), state,
    ]  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _state_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Everything a tokenizer's ids depend on, except transformers' code; None if it is unknown."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(tokenizer).__module__.split(".")[0] != "transformers":
        return None  # code from a model's repository can do anything
    try:
        pipeline = json.loads(backend.to_str())
    except Exception:  # what tokenizers raises for a part that is written in Python
        return None
    for state in ("truncation", "padding"):  # left over from its last call
        pipeline.pop(state, None)
    settings = {
        name: value
        for name, value in tokenizer.init_kwargs.items()
        if name not in LOCATION and not name.endswith("_file")  # the pipeline has what was in them
    }
    # The settings it was loaded with, and those that may have been changed since.
    parts = [
        type(tokenizer).__qualname__, pipeline, settings, tokenizer.special_tokens_map,
        tokenizer.split_special_tokens, tokenizer.chat_template, tokenizer.truncation_side,
        tokenizer.model_input_names, getattr(tokenizer, "src_lang", None),
        getattr(tokenizer, "tgt_lang", None),
    ]  # fmt: skip
    try:
        return json.dumps(parts, sort_keys=True, default=_plain)
    except TypeError:  # a setting that cannot be written as text
        return None


def _plain(value: Any) -> str:
    if isinstance(value, AddedToken):
        return repr(value)
    raise TypeError(f"{value!r} has no text that is the same in every process")
