r"""Scores of parts of the held-out rows: of a class, of short and long rows, by a field of theirs.

A slice is compared with all other rows of the same runs. Its difference could be due to chance in
two ways, and it is significant only if neither explains it:

- Other runs: a run may by luck lean towards one class. The t-test has the variance of rows and that
  between runs in it, as ``decision.statistics`` does for two methods. With weights :math:`w = 1/n`
  in the slice and :math:`-1/m` outside, the difference is the mean over rows of
  :math:`(n+m) w (y - \bar y)`, so it is tested like any mean, and groups of rows count as one. The
  variance is at least that of a world without slices, as eight rows that are all right have none.
- Other rows: in a small slice of rows that are right or wrong no t-distribution holds. So as many
  rows are drawn at random again and again, and the slice's difference is placed among theirs.

The larger p-value of both counts, corrected for the number of slices and methods (Holm).
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorada.compare.held_out_rows import AskedRow
from lorada.data.scoring.chosen_metric import WORD
from lorada.data.scoring.metrics import are_classes
from lorada.decision.run_variances import TINY, Common, Scores
from lorada.decision.statistics import ALPHA, by_group, holm, mean_score
from lorada.support.error_messages import needs_extra
from lorada.support.in_words import answer_in_words
from lorada.support.row_sources import Form

Inside = NDArray[np.bool_]  # of each row, whether it is in a slice
LEAST_ROWS = 8  # of a slice; smaller ones are put together
MOST_SLICES = 20  # of a field; those of its rarest values are put together
NUMBERS = 10  # different numbers of a field from which it is cut into quarters
CLASS, LENGTH, ANSWER_LENGTH = "class", "length", "length of the answer"
OTHERS, NONE = "others", "none"
DRAWS = 4000  # of as many rows as a slice has
BLOCK = 200  # of these at once
FEW_VALUES = 50  # different scores of rows
ENOUGH = 40  # draws that differ as much as the slice


@dataclass(frozen=True)
class Slice:
    """A part of the held-out rows."""

    by: str  # ``class``, ``length`` or the name of a field
    value: str  # what its rows share
    inside: Inside

    @property
    def row_count(self) -> int:
        """How many rows it has."""
        return int(self.inside.sum())


@dataclass(frozen=True)
class SliceScore:
    """What a method scores on a slice; higher is better, as of all scores.

    Attributes:
        method: the candidate's label.
        by: what the rows were parted by.
        value: what the rows of the slice share.
        rows: how many it has.
        score: the mean over its rows and the seeds.
        low: lower end of the 95 % interval of that.
        high: its upper end.
        rest: the mean over all other rows.
        p: that of the difference, corrected for the number of slices and methods (Holm).
        is_worse: whether the slice is significantly worse than the rest.
    """

    method: str
    by: str
    value: str
    rows: int
    score: float
    low: float
    high: float
    rest: float
    p: float = 1.0
    is_worse: bool = False

    @property
    def name(self) -> str:
        """What it is called, such as ``class valid``; lengths name themselves."""
        if self.by in (LENGTH, ANSWER_LENGTH):
            return self.value
        return f"{self.by} {self.value}"

    def with_p(self, p: float) -> "SliceScore":
        """The same with its corrected p-value, which decides whether it is worse."""
        return replace(self, p=p, is_worse=p < ALPHA and self.score < self.rest)


def slices_of(rows: Sequence[AskedRow], form: Form, fields: Sequence[str] = ()) -> list[Slice]:
    """Cut rows into slices by class, by length of the question and answer, and by named fields.

    A row is in several slices: of its class, of its length, and of each field. Slices that are too
    small to be compared are left out.

    Args:
        rows: the held-out rows.
        form: of the rows; classes are known by it, or, of written answers, by how few there are.
        fields: names of columns of the rows.

    Raises:
        ValueError: for a field that no row has, or that has one value in all of them.
    """
    slices = _by_class(rows, form)
    words = [len(WORD.findall(row.text)) for row in rows]
    slices += _quarters(LENGTH, words, "word", "")
    # A class has no length of interest; an answer that is written has.
    if form in ("prompt", "messages") and not _are_classes(rows):
        answer_words = [len(WORD.findall(str(row.right))) for row in rows]
        slices += _quarters(ANSWER_LENGTH, answer_words, "word", "answers of ")
    for name in dict.fromkeys(fields):
        slices += _by_field(rows, name)
    return slices


def _are_classes(rows: Sequence[AskedRow]) -> bool:
    """Whether right answers that are texts are so few that they are classes."""
    return are_classes([str(row.right).strip() for row in rows])


def _by_class(rows: Sequence[AskedRow], form: Form) -> list[Slice]:
    """A slice for each right answer, if these are classes; of rows with several labels for each."""
    if form == "labels":
        labels: set[str] = set()
        for row in rows:
            labels.update(_labels(row))
        slices = []
        for label in sorted(labels):
            inside = np.array([label in _labels(row) for row in rows])
            slices.append(Slice(CLASS, label, inside))
        return [part for part in slices if _is_large(part)]
    texts_are_classes = form in ("prompt", "messages") and _are_classes(rows)
    if form == "label" or texts_are_classes:
        return _by_value(CLASS, [str(row.right).strip() for row in rows])
    return []


def _labels(row: AskedRow) -> list[str]:
    """The right labels of a row; none of a row of another form."""
    return row.right if isinstance(row.right, list) else []


def _by_field(rows: Sequence[AskedRow], name: str) -> list[Slice]:
    """Slices by a field: quarters of many different numbers, else one for each common value.

    Refuses a field that no row has, and one by which no two slices are large enough.
    """
    values = [row.fields.get(name) for row in rows]
    if all(value is None for value in values):
        fields: set[str] = set()
        for row in rows:
            fields.update(row.fields)
        raise ValueError(
            f"no held-out row has a field {name!r}: their fields are {', '.join(sorted(fields))}"
        )
    numbers = []
    for value in values:
        number = _as_number(value)
        if number is not None:
            numbers.append(number)
    all_are_numbers = len(numbers) == len(rows)
    if all_are_numbers and len(set(numbers)) > NUMBERS:
        slices = _quarters(name, numbers, "", "")
    else:
        slices = _by_value(name, [_value_in_words(value) for value in values])
    if not slices:
        raise ValueError(
            f"--by {name}: no two values of it have {LEAST_ROWS} held-out rows or more each, so "
            "there is nothing to compare"
        )
    return slices


def _as_number(value: Any) -> float | None:
    """A finite number, or the text of one, as tables have it; None for anything else."""
    if isinstance(value, bool | list | dict) or value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if not np.isfinite(number):
        return None
    return number


def _value_in_words(value: Any) -> str:
    """A field's value as a slice is called by it; ``none`` where a row has none."""
    if value is None or value == "":
        return NONE
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return answer_in_words(value)


def _by_value(by: str, values: Sequence[str]) -> list[Slice]:
    """A slice for each value, the commonest first; rows with rare values are one slice together.

    Empty where no slice is large enough to be compared.
    """
    common = []
    for value, count in Counter(values).most_common(MOST_SLICES - 1):
        if count >= LEAST_ROWS:
            common.append(value)
    slices = []
    for value in common:
        inside = np.array([value_of_row == value for value_of_row in values])
        slices.append(Slice(by, value, inside))
    is_rare = np.array([value not in common for value in values])
    if is_rare.sum() >= LEAST_ROWS:
        slices.append(Slice(by, OTHERS, is_rare))
    if not any(_is_large(part) for part in slices):
        return []
    return slices


def _is_large(part: Slice) -> bool:
    """Whether a slice, and what is left of the rows, can be compared with each other."""
    return min(part.row_count, len(part.inside) - part.row_count) >= LEAST_ROWS


def _quarters(by: str, numbers: Sequence[float], unit: str, before: str) -> list[Slice]:
    """The quarters of rows by a number, from the least on; fewer parts where many are equal.

    Args:
        by: what the number is, as slices are called.
        numbers: of each row.
        unit: of the numbers, in the singular; empty for none.
        before: what stands before the numbers in a slice's name.

    Returns:
        The quarters that are large enough; none if that leaves only one.
    """
    values = np.array(numbers, dtype=float)
    limits = np.unique(np.quantile(values, [0.25, 0.5, 0.75], method="lower"))
    limits = limits[limits < values.max()]  # above the last one there is a row
    # A row that is equal to a limit belongs below it.
    quarter_of_row = np.searchsorted(limits, values, side="left")
    behind = f" {unit}s" if unit else ""
    slices = []
    for quarter in range(len(limits) + 1):
        inside = quarter_of_row == quarter
        low, high = values[inside].min(), values[inside].max()
        ends = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        slices.append(Slice(by, f"{before}{ends}{behind}", inside))
    slices = [part for part in slices if _is_large(part)]
    if len(slices) == 1:
        return []
    return slices


def score_slices(
    slices: Sequence[Slice],
    scores: Mapping[str, Scores],
    groups: Sequence[object] | None = None,
    *,
    share: bool = False,
) -> list[SliceScore]:
    """Score each method on each slice, and test whether it differs from all other rows.

    Args:
        slices: of the rows; those that are too small for a test are left out.
        scores: of each method seeds × rows, higher is better.
        groups: of each row; rows of one group are not independent of each other.
        share: whether scores lie between 0 and 100.

    Returns:
        A score for each slice and method, the methods of a slice after each other.
    """
    slices = [part for part in slices if _is_large(part)]
    tables = list(scores.values())
    slice_scores: list[SliceScore] = []
    p_values: list[float] = []  # of each test
    place_of_test: dict[tuple[str, bytes], int] = {}  # in ``p_values``
    test_of_score: list[int] = []  # of each of ``slice_scores``, its place in ``p_values``
    for part in slices:
        for method, table in scores.items():
            key = (method, _split_key(part.inside))
            if key not in place_of_test:
                # Of two slices that are all rows together there is one difference, and one test.
                place_of_test[key] = len(p_values)
                p_values.append(slice_p(table, part.inside, groups, tables))
            test_of_score.append(place_of_test[key])
            slice_scores.append(_score_slice(part, method, scores, groups, share=share))
    corrected = holm(p_values)
    return [
        score.with_p(corrected[test])
        for score, test in zip(slice_scores, test_of_score, strict=True)
    ]


def _split_key(inside: Inside) -> bytes:
    """A key of how rows are split in two: the same for a slice and for all other rows."""
    side_of_first_row = inside if inside[0] else ~inside
    return side_of_first_row.tobytes()


def _score_slice(
    part: Slice,
    method: str,
    scores: Mapping[str, Scores],
    groups: Sequence[object] | None,
    *,
    share: bool,
) -> SliceScore:
    """What a method scores on a slice and on the rest, with an interval; not tested yet.

    Args:
        part: the slice.
        method: one of ``scores``.
        scores: of each method seeds × rows, all of them.
        groups: of each row, if they have any.
        share: whether scores lie between 0 and 100.
    """
    tables = {}  # of the slice's rows, or groups
    for name, table in scores.items():
        tables[name] = _independent_scores(table[:, part.inside], part.inside, groups)
    table = scores[method]
    score = float(table[:, part.inside].mean())
    low = high = score
    if tables[method].shape[1] > 1:  # one row alone has no interval
        # A few runs may be alike by luck, so they borrow how much runs vary from other methods.
        common = Common.of(list(tables.values()))
        low, high = mean_score(tables[method], common, share=share).interval()
    if share:
        low, high = max(low, 0.0), min(high, 100.0)
    rest = float(table[:, ~part.inside].mean())
    return SliceScore(method, part.by, part.value, part.row_count, score, low, high, rest)


def _independent_scores(
    slice_scores: Scores, inside: Inside, groups: Sequence[object] | None
) -> Scores:
    """The scores of a slice's rows, or, where rows come in groups, the means of these groups."""
    if groups is None:
        return slice_scores
    groups_inside = [group for group, is_in in zip(groups, inside, strict=True) if is_in]
    return by_group(slice_scores, groups_inside)


def slice_p(
    scores: Scores,
    inside: Inside,
    groups: Sequence[object] | None = None,
    methods: Sequence[Scores] = (),
) -> float:
    """The p-value of the difference between a slice and all other rows, two-sided.

    Args:
        scores: seeds × rows.
        inside: of each row, whether it is in the slice; two rows or more on either side.
        groups: of each row, if they have any.
        methods: the scores of all methods, from which few runs borrow how much runs vary.
    """
    p_of_runs = _p_with_runs(scores, inside, groups, methods)
    if p_of_runs >= ALPHA or groups is not None:  # rows of a group cannot be drawn one by one
        return p_of_runs
    return max(p_of_runs, _p_of_drawn_rows(scores.mean(axis=0), inside))


def _p_with_runs(
    scores: Scores, inside: Inside, groups: Sequence[object] | None, methods: Sequence[Scores]
) -> float:
    """The p-value of the t-test of a slice, whose error has the variances of rows and runs in it.

    The arguments are those of ``slice_p``.
    """
    with needs_extra("compare"):
        from scipy.stats import t

    common = Common.of([_differences(table, inside, groups) for table in methods])
    estimate = mean_score(_differences(scores, inside, groups), common)
    # The error is not below that of a world without slices, in which all rows vary alike.
    rows, within = len(inside), int(inside.sum())
    variance_without_slices = scores.mean(axis=0).var(ddof=1) * (1 / within + 1 / (rows - within))
    error = max(estimate.error, float(np.sqrt(variance_without_slices)))
    if error < TINY:
        return 1.0
    return float(2 * t.sf(abs(estimate.value) / error, max(estimate.freedom, 1.0)))


def _differences(scores: Scores, inside: Inside, groups: Sequence[object] | None) -> Scores:
    """Seeds × rows (or groups), whose mean is the difference between a slice and the rest.

    So the difference is tested like any mean; see the formula at the head of this file.
    """
    rows, within = len(inside), int(inside.sum())
    weights = np.where(inside, 1 / within, -1 / (rows - within))
    weighted: Scores = rows * weights * (scores - scores.mean(axis=1, keepdims=True))
    if groups is None:
        return weighted
    return by_group(weighted, groups)


def _p_of_drawn_rows(by_row: Scores, inside: Inside) -> float:
    """The share of random draws of as many rows that differ as much from the rest.

    ``by_row`` is the mean score of each row over the runs. Drawing ends when ``ENOUGH`` of them
    do: then it is clear enough how often that is (Besag and Clifford, 1991, "Sequential Monte
    Carlo p-values").
    """
    rows, within = len(by_row), int(inside.sum())
    # The gap between the two sides follows from that between either and all rows. Fewer rows are
    # drawn faster.
    fewer = min(within, rows - within)
    smaller_side = inside if within == fewer else ~inside
    mean = float(by_row.mean())
    gap = abs(float(by_row[smaller_side].mean()) - mean)
    random = np.random.default_rng(rows)  # the same draws whenever a report is written
    as_large = drawn = 0
    while drawn < DRAWS and as_large < ENOUGH:
        gaps = np.abs(_draw_means(by_row, fewer, random) - mean)
        as_large += int((gaps >= gap - TINY).sum())
        drawn += BLOCK
    # The slice itself counts as a draw, so that p is never 0.
    return (1 + as_large) / (1 + drawn)


def _draw_means(by_row: Scores, count: int, random: np.random.Generator) -> Scores:
    """Draw so many rows without replacement, ``BLOCK`` times, and return the mean of each draw."""
    values, rows_of_value = np.unique(by_row, return_counts=True)
    if len(values) <= FEW_VALUES:
        # Rows that are right or wrong have few values: how many of each are drawn says all.
        drawn = random.multivariate_hypergeometric(rows_of_value, count, size=BLOCK)
        means: Scores = drawn @ values / count
        return means
    shuffled = random.permuted(np.broadcast_to(by_row, (BLOCK, len(by_row))), axis=1)
    means = shuffled[:, :count].mean(axis=1)
    return means
