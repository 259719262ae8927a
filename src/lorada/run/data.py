"""From rows to a dataset of token ids, and the collator that pads them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.progress import track
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from lorada.run.recipe import Recipe
from lorada.tasks import TASKS
from lorada.tasks.jsonl import IGNORED, EncodeOptions
from lorada.tasks.rows import Form, Row, fingerprint, form_of, read_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """The rows of one file.

    Attributes:
        labels: class names by index, for ``text``/``label`` rows.
    """

    rows: list[Row]
    form: Form
    labels: tuple[str, ...]
    path: str

    @property
    def fingerprint(self) -> str:
        """sha256 of the content."""
        return fingerprint(self.rows)


def class_count(rows: Rows) -> int | None:
    """How many classes labelled rows have; None for rows that ask for a text.

    Raises:
        ValueError: for a single class, from which nothing can be learned.
    """
    if rows.form != "label":
        return None
    if len(rows.labels) < 2:
        raise ValueError(f"{rows.path} has only the label {rows.labels[0]!r}: needed are two")
    return len(rows.labels)


def load_rows(path: str | None, trained: Form | None = None, labels: tuple[str, ...] = ()) -> Rows:
    """Read a file of rows.

    Args:
        path: the file.
        trained: the form of the training rows, for held-out ones; None for training rows.
        labels: class names that the training rows have settled.

    Raises:
        ValueError: if no file was named, or held-out rows ask for something that was not learned:
            labels of a model that gives texts or texts of one that gives labels, or a new label.
    """
    if path is None:
        raise ValueError("no data: pass --data FILE (.jsonl or .csv)")
    rows = read_rows(path)
    form = form_of(rows, path)
    if trained is not None and (form == "label") != (trained == "label"):
        raise ValueError(f"{path} has {form} rows; this run has learned {trained} rows")
    found = tuple(sorted({str(row["label"]) for row in rows})) if form == "label" else ()
    if labels and not set(found) <= set(labels):
        new = sorted(set(found) - set(labels))[0]
        raise ValueError(f"{path} has the label {new!r}; training knew {', '.join(labels)}")
    return Rows(rows, form, labels or found, path)


def encode_rows(rows: Rows, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Token ids of all rows; how many had to be cut or dropped is reported, never silent.

    Raises:
        ValueError: if no row is left to learn from.
    """
    task = TASKS[recipe.task]
    options = EncodeOptions(recipe.max_length, recipe.loss_on, rows.labels)
    features, cut, dropped = [], 0, 0
    for row in track(
        rows.rows, f"Encoding {rows.path}", transient=True, console=Console(stderr=True)
    ):
        encoded = task.encode(row, rows.form, tokenizer, options)
        if encoded is None:
            dropped += 1
            continue
        cut += encoded.truncated
        features.append(encoded.features)
    if cut or dropped:
        logger.warning(
            "%s: %d of %d rows were cut to max_length=%d, %d more were left out because nothing "
            "of the response was left",
            rows.path, cut, len(rows.rows), recipe.max_length, dropped,
        )  # fmt: skip
    if not features:
        raise ValueError(
            f"no row of {rows.path} fits: every response lies beyond max_length="
            f"{recipe.max_length}; raise it"
        )
    return Dataset.from_list(features)


def collator(form: Form, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Any]:
    """Pads a batch to its longest row, labels included."""
    pad: Callable[..., Any] = (
        DataCollatorWithPadding(tokenizer)
        if form == "label"
        else DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=IGNORED)
    )
    return pad


def context_of(model_config: Any) -> int | None:
    """How many tokens a model can read; None if its config does not say."""
    context = getattr(model_config, "max_position_embeddings", None)
    if not isinstance(context, int):
        return None
    # RoBERTa's positions begin behind its pad token's.
    shifted = model_config.model_type in ("roberta", "xlm-roberta")
    return context - (model_config.pad_token_id + 1 if shifted else 0)


def fit_context(recipe: Recipe, model_config: Any) -> Recipe:
    """The recipe with ``max_length`` cut to what the model can read."""
    context = context_of(model_config)
    if context is not None and recipe.max_length > context:
        logger.warning("max_length=%d is cut to the model's %d", recipe.max_length, context)
        return recipe.model_copy(update={"max_length": context})
    return recipe
