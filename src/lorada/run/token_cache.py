"""Token ids of large sets of rows, kept among Hugging Face's datasets for the next run.

Nothing has to be told apart by hand: what the ids depend on is in the name of their folder. It may
be deleted at any time.
"""

import hashlib
import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path

import datasets
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorada.files import written_whole
from lorada.run.data import Rows
from lorada.tasks import encode
from lorada.tasks.encode import EncodeOptions

logger = logging.getLogger(__name__)

LEAST = 5000  # rows; fewer are tokenised in about a second
COUNTS = "counts.json"

Encoding = tuple[Dataset | None, dict[str, int]]  # rows that were cut and dropped, by name


def kept(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    options: EncodeOptions,
    make: Callable[[], Encoding],
) -> Encoding:
    """What ``make`` gives, from the disk if it was there before."""
    key = _key(rows, tokenizer, options) if len(rows.rows) >= LEAST else None
    if key is None:
        return make()
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "lorada" / key
    try:
        counts = json.loads((folder / COUNTS).read_text())
        return Dataset.load_from_disk(str(folder), keep_in_memory=False), counts
    except (OSError, ValueError):  # not there, or not whole
        made, counts = make()
    if made is not None:
        try:
            with written_whole(folder) as fresh:
                made.save_to_disk(str(fresh))
                (fresh / COUNTS).write_text(json.dumps(counts))
        except OSError as error:
            logger.warning("the tokens of %s could not be kept for later: %s", rows.path, error)
    return made, counts


def _key(rows: Rows, tokenizer: PreTrainedTokenizerBase, options: EncodeOptions) -> str | None:
    """A hash of all that the ids depend on; None for a tokenizer that does not show itself."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    shown = json.loads(backend.to_str())
    for state in ("truncation", "padding"):  # left over from its last call
        shown.pop(state, None)
    parts = [
        rows.fingerprint, rows.form, repr(options), inspect.getsource(encode),
        json.dumps(shown, sort_keys=True), tokenizer.special_tokens_map,
        tokenizer.chat_template, tokenizer.truncation_side, tokenizer.model_input_names,
        getattr(tokenizer, "src_lang", None), getattr(tokenizer, "tgt_lang", None),
    ]  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
