"""The rows of a comparison: those to learn from, those set aside, and the held-out rows."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from lorada.compare.spec import Comparison
from lorada.data.forms.row_values import GROUP
from lorada.data.rows.benchmark_rows import scored_rows
from lorada.data.rows.doubtful_rows import warn_of_doubtful
from lorada.data.rows.kept_rows import KeptRows
from lorada.data.rows.row_content import content_of
from lorada.data.rows.rows import Rows, refuse_empty_prompts
from lorada.data.rows.training_rows import OwnClasses, training_rows
from lorada.data.task import Kind

# How many training rows are set aside to measure learning rates: a tenth, within these limits.
# With fewer rows, the rate that looks best is more often another one (docs/studies/rates.md).
LEAST_DEV_ROWS, MOST_DEV_ROWS = 8, 300

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The rows of a comparison."""

    train: Rows  # to learn from; the search for learning rates sets ``dev_rows`` of them aside
    held_out: dict[str, Rows]  # to score, by the name of their metrics
    dev_rows: int  # 0 without a search
    overlap: int  # how many held-out rows are training rows too
    kept: KeptRows = field(default_factory=KeptRows)  # which the model should still do


def read_data(comparison: Comparison, kind: Kind, own_classes: OwnClasses = None) -> Data:
    """Read the rows of a comparison and check that they can be compared on.

    ``kind`` is that of the model, which matters for benchmarks only; ``own_classes`` are those of
    the model's own head, if it has one. Held-out rows that are copies of others are warned of.

    Raises:
        FileNotFoundError: for a file that is missing.
        ValueError: for rows that cannot be trained on or scored, and held-out rows among the
            training rows, unless the comparison allows them.
    """
    recipe = comparison.shared_recipe
    train, own_held_out = training_rows(recipe, kind, own_classes)
    warn_of_doubtful(train)
    if own_held_out is not None:
        held_out = {str(comparison.held_out): own_held_out}
    else:  # a benchmark may have several splits to score
        held_out = scored_rows(recipe, train.form, train.labels, kind)

    train_contents = {content_of(row) for row in train.rows}
    overlap = 0
    for name, rows in held_out.items():
        contents = [content_of(row) for row in rows.rows]
        common = sum(content in train_contents for content in contents)
        if common and not comparison.allow_overlap:
            raise ValueError(
                f"{common} of {len(rows.rows)} held-out rows ({name}) are training rows too, so "
                "scores would reward memory: remove them from one file, or pass --allow-overlap"
            )
        overlap += common
        _warn_of_copies(name, rows, contents)
        if kind == "decoder" and rows.form == "prompt":
            refuse_empty_prompts(rows)
    return Data(train, held_out, _dev_rows(comparison, train), overlap)


def _warn_of_copies(name: str, rows: Rows, contents: Sequence[str]) -> None:
    """Warn of held-out rows that are copies of others.

    Rows of one group count as one, so copies among them make nothing look more certain.
    """
    groups = [row.get(GROUP, number) for number, row in enumerate(rows.rows)]
    independent = set(zip(contents, groups, strict=True))
    copies = len(independent) - len(set(contents))
    if copies:
        logger.warning(
            "%d of %d held-out rows (%s) are copies of others, and each counts as a row of its "
            "own: differences look more certain than they are",
            copies,
            len(rows.rows),
            name,
        )


def _dev_rows(comparison: Comparison, train: Rows) -> int:
    """How many training rows are set aside for the learning rate; 0 without a search.

    A tenth of the rows, within two limits. Rows so few that none would be left to learn are
    refused.
    """
    if not any(comparison.is_searched(method) for method in comparison.methods):
        return 0
    dev_rows = min(MOST_DEV_ROWS, max(LEAST_DEV_ROWS, len(train.rows) // 10))
    if dev_rows >= len(train.rows):
        raise ValueError(
            f"{train.path} has {len(train.rows)} rows, and none is left to learn from after "
            f"{dev_rows} are set aside for the learning rate: give more rows, or --trials 0"
        )
    return dev_rows
