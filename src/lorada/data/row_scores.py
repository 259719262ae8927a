"""The metrics of each row alone, so that two models can be compared row by row."""

from typing import Any

from lorada.data.metrics import accuracy, class_weights, contains, exact_match
from lorada.data.task import Protocol
from lorada.support.row_sources import Row


def row_metrics(protocol: Protocol, answers: list[Any], rows: list[Row]) -> list[dict[str, float]]:
    """The metrics of each answer that cost nothing, without the row's loss.

    - A class: ``accuracy``, 100 if it is right, else 0; and ``balanced_accuracy``, the same times
      a weight by which each class counts as much as any other.
    - A candidate: ``accuracy``.
    - A text: the protocol's main metric of this row alone, in percent. So the mean is the main
      metric of all rows if that is itself a mean over rows. BLEU is not: a row has the
      sentence-level score. A text that is asked to be exact has ``contains`` too.
    - A number: ``mae``, its distance from the right one.
    - Plain text, which is scored by windows: the mean ``loss`` of each window in nats per token,
      the windows of one length after those of another. Where the last window is shorter, each loss
      is weighted by the window's share of the tokens, so that the mean is that of all tokens.

    Args:
        protocol: how the rows were asked.
        answers: the model's answers, as ``protocol.score`` takes them.
        rows: the rows that were asked, in the same order.
    """
    if protocol.form == "text":
        if protocol.lengths:
            return [{"loss": loss} for _, losses in answers for loss in losses]
        mean = sum(count for _, count in answers) / len(answers)
        return [{"loss": loss * count / mean} for loss, count in answers]
    pairs = list(zip(answers, rows, strict=True))
    if protocol.form == "score":
        return [{"mae": abs(answer - float(row["score"]))} for answer, row in pairs]
    score = accuracy if protocol.form in ("label", "choice") else protocol.score
    found = [dict([next(iter(score([answer], [row]).items()))]) for answer, row in pairs]
    if protocol.form == "label":
        for one, weight in zip(found, class_weights(rows), strict=True):
            one["balanced_accuracy"] = weight * one["accuracy"]
    if protocol.score is exact_match:
        for one, pair in zip(found, pairs, strict=True):
            one["contains"] = contains(*pair)
    return found
