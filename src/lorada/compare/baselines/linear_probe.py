"""What a linear model scores on the features of the base as it is, whose weights are frozen.

Classes and labels are learned by logistic regression, numbers by ridge regression. How tokens are
pooled and how much is penalised is chosen by cross-validation inside the training rows, with the
rows of a group together.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorada.compare.baselines.row_scores import scores_of
from lorada.compare.stored_plan import Untrained
from lorada.data.batches import collator
from lorada.data.forms.row_values import GROUP
from lorada.data.rows.rows import Rows
from lorada.data.tokenize import encode_rows
from lorada.inference.answer_rows import batches_by_length
from lorada.inference.load import Run, scoring
from lorada.support.error_messages import needs_extra
from lorada.support.progress import progress_bar

Features = NDArray[np.float32]  # rows × width
FOLDS = 5
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of weights of standardised features: C, or 1/alpha
MOST_ITERATIONS = 1000
TITLE = "a linear probe"


class Pooled(NamedTuple):
    """The features of rows, each pooled in two ways."""

    mean: Features  # over all tokens of a row
    single: Features  # of the first token of an encoder, of the last of any other model


def linear_probe(run: Run, train: Rows, held_out: Sequence[Rows]) -> Untrained:
    """The scores of a linear probe on the held-out rows.

    Raises:
        ImportError: without scikit-learn.
    """
    folds = _folds(train)
    if folds < 2:
        reason = "the training rows have no two groups with two classes to choose a penalty by"
        return Untrained(title=TITLE, reason=reason)
    probe = _fitted(_features(run, train), train, folds)
    row_scores = scores_of(
        held_out, lambda rows: probe.answers(_features(run, rows), train), run.metric
    )
    return Untrained(row_scores, title=TITLE, note=f"on frozen features, {probe.note}")


class _Probe(NamedTuple):
    """A fitted model, and the features that it reads."""

    model: Any
    pooling: str

    @property
    def note(self) -> str:
        """Which features it reads, in words."""
        return "the mean of all tokens" if self.pooling == "mean" else "one token of each row"

    def answers(self, features: Pooled, train: Rows) -> list[Any]:
        """The answers to rows with these features, in the form that they are scored in."""
        predicted = self.model.predict(getattr(features, self.pooling))
        if train.form == "labels":
            return [
                [name for name, is_set in zip(train.labels, row, strict=True) if is_set]
                for row in predicted
            ]
        if train.form == "label":
            return [train.labels[index] for index in predicted]
        return [float(value) for value in predicted]


def _folds(train: Rows) -> int:
    """In how many parts cross-validation divides the rows; below 2 they cannot be divided.

    Rows of a group share a part, and each class is to be in as many parts as can be.
    """
    groups = _groups(train)
    folds = min(FOLDS, len(set(groups)))
    if train.form != "label":
        return folds
    groups_of: dict[str, set[str]] = {}
    for row, group in zip(train.rows, groups, strict=True):
        groups_of.setdefault(str(row["label"]), set()).add(group)
    sizes = sorted(map(len, groups_of.values()), reverse=True)
    # Where a part is left out, two classes have to be left to learn.
    if len(sizes) < 2 or sizes[1] < 2:
        return 0
    return min(folds, sizes[0])


def _fitted(features: Pooled, train: Rows, folds: int) -> _Probe:
    """The probe with the pooling and the penalty that are best in cross-validation."""
    targets = _targets(train)
    groups = _groups(train)
    searches = {}
    for pooling in Pooled._fields:
        search = _search(train, folds)
        searches[pooling] = search.fit(getattr(features, pooling), targets, groups=groups)
    best = max(searches, key=lambda pooling: float(searches[pooling].best_score_))
    return _Probe(searches[best].best_estimator_, best)


def _targets(train: Rows) -> NDArray[Any]:
    """What the probe learns: indices of classes, a column of 0 and 1 for each label, or numbers."""
    if train.form == "score":
        return np.array([float(row["score"]) for row in train.rows])
    index_of = {name: index for index, name in enumerate(train.labels)}
    if train.form == "label":
        return np.array([index_of[str(row["label"])] for row in train.rows])
    targets = np.zeros((len(train.rows), len(train.labels)), dtype=int)
    for number, row in enumerate(train.rows):
        for name in row["labels"]:
            targets[number, index_of[name]] = 1
    return targets


def _groups(train: Rows) -> list[str]:
    """The group of each row; a row without one is a group by itself."""
    return [str(row.get(GROUP, f"row {number}")) for number, row in enumerate(train.rows)]


def _search(train: Rows, folds: int) -> Any:
    """A search for the penalty, by cross-validation in so many parts."""
    with needs_extra("compare"):
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

    penalties = list(PENALTIES)
    if train.form == "score":
        # Ridge regression is told how much is penalised, and not how little as the others.
        penalties = [1 / value for value in PENALTIES]
        model, penalty, measured = Ridge(), "ridge__alpha", "neg_mean_squared_error"
        split: Any = GroupKFold(folds)
    elif train.form == "labels":
        model = OneVsRestClassifier(LogisticRegression(max_iter=MOST_ITERATIONS))
        penalty, measured = "onevsrestclassifier__estimator__C", "f1_micro"
        split = GroupKFold(folds)
    else:
        model = LogisticRegression(max_iter=MOST_ITERATIONS)
        penalty, measured = "logisticregression__C", "accuracy"
        split = StratifiedGroupKFold(folds)
    pipeline = make_pipeline(StandardScaler(), model)
    return GridSearchCV(pipeline, {penalty: penalties}, cv=split, scoring=measured)


def _features(run: Run, rows: Rows) -> Pooled:
    """The features of rows, in their order."""
    dataset = encode_rows(rows, run.recipe, run.tokenizer, run.kind, answered=True)
    pad = collator(rows.form, run.tokenizer)
    # The base without its head, which no checkpoint has; a decoder behind an encoder would need
    # tokens of its own, which only the head makes.
    is_double = run.kind == "encoder_decoder"
    reader = run.model.get_encoder() if is_double else run.model.base_model
    pooled: dict[int, tuple[Tensor, Tensor]] = {}
    with scoring(run, base=False):
        for chosen in progress_bar(
            batches_by_length(dataset, run.recipe.eval_batch_size), "Reading"
        ):
            batch = pad([dataset[index] for index in chosen])
            batch.pop("labels")
            inputs = {name: tensor.to(run.device) for name, tensor in batch.items()}
            hidden = reader(**inputs).last_hidden_state.float()
            means, singles = _pooled(hidden, inputs["attention_mask"], first=run.kind == "encoder")
            pooled.update(zip(chosen, zip(means.cpu(), singles.cpu(), strict=True), strict=True))
    ordered = [pooled[index] for index in range(len(pooled))]
    return Pooled(
        mean=torch.stack([mean for mean, _ in ordered]).numpy(),
        single=torch.stack([single for _, single in ordered]).numpy(),
    )


def _pooled(hidden: Tensor, mask: Tensor, *, first: bool) -> tuple[Tensor, Tensor]:
    """Hidden states (B, T, H) of tokens that count by a mask (B, T), pooled to (B, H) twice."""
    weights = mask[..., None].to(hidden.dtype)
    mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    # The first or last token that is no pad, on whichever side the pads are.
    positions = torch.arange(mask.shape[1], device=mask.device)
    index = mask.argmax(1) if first else (positions * mask).argmax(1)
    return mean, hidden[torch.arange(len(hidden), device=hidden.device), index]
