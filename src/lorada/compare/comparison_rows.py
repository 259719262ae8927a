"""The rows of a comparison: those to learn from, those set aside, and the held-out rows."""

import logging
from dataclasses import dataclass

from lorada.compare.spec import Comparison
from lorada.data.doubtful_rows import warn_of_doubtful
from lorada.data.read_rows import content_of
from lorada.data.row_values import GROUP
from lorada.data.task import Kind
from lorada.data.task_rows import OwnClasses, Rows, refuse_empty_prompts, scored_rows, training_rows

# How many training rows are set aside to measure learning rates: a tenth, within these limits.
# With fewer rows, the rate that looks best is more often another one (docs/compare.md).
LEAST, MOST = 8, 300

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The rows of a comparison."""

    train: Rows  # to learn from; the search for learning rates sets ``dev_rows`` of them aside
    held_out: dict[str, Rows]  # to score, by the name of their metrics
    dev_rows: int  # 0 without a search
    overlap: int  # how many held-out rows are training rows too


def read_data(comparison: Comparison, kind: Kind, own_classes: OwnClasses = None) -> Data:
    """Read the rows of a comparison and check that they can be compared on.

    ``kind`` is that of the model, which matters for benchmarks only; ``own_classes`` are those of
    the model's own head, if it has one.
    """
    recipe = comparison.shared_recipe
    train, held_out = training_rows(recipe, kind, own_classes)
    warn_of_doubtful(train)
    if held_out is not None:
        scored = {str(comparison.held_out): held_out}
    else:
        scored = scored_rows(recipe, train.form, train.labels, kind)
    overlap, known = 0, {content_of(row) for row in train.rows}
    for name, rows in scored.items():
        found = [content_of(row) for row in rows.rows]
        common = sum(content in known for content in found)
        if common and not comparison.allow_overlap:
            raise ValueError(
                f"{common} of {len(rows.rows)} held-out rows ({name}) are training rows too, so "
                "scores would reward memory: remove them from one file, or pass --allow-overlap"
            )
        overlap += common
        # Rows of one group count as one, so copies among them make nothing look more certain.
        groups = [row.get(GROUP, number) for number, row in enumerate(rows.rows)]
        copies = len(set(zip(found, groups, strict=True))) - len(set(found))
        if copies:
            logger.warning(
                "%d of %d held-out rows (%s) are copies of others, and each counts as a row of its "
                "own: differences look more certain than they are", copies, len(rows.rows), name,
            )  # fmt: skip
        if kind == "decoder" and rows.form == "prompt":
            refuse_empty_prompts(rows)
    searched = any(map(comparison.is_searched, comparison.methods))
    dev_rows = min(MOST, max(LEAST, len(train.rows) // 10)) if searched else 0
    if dev_rows >= len(train.rows):
        raise ValueError(
            f"{train.path} has {len(train.rows)} rows, and none is left to learn from after "
            f"{dev_rows} are set aside for the learning rate: give more rows, or --trials 0"
        )
    return Data(train, scored, dev_rows, overlap)
