"""The score of each row alone, so that two models can be compared row by row."""

from typing import Any

from lorada.data.metrics import accuracy
from lorada.data.rows import Row
from lorada.data.task import Protocol


def row_scores(protocol: Protocol, answers: list[Any], rows: list[Row]) -> list[float]:
    """The score of each answer; more is better, and the mean over rows is what is compared.

    - A class or a candidate: 100 if it is right, else 0, also where the protocol's main metric is
      not accuracy (CoLA).
    - A text: the protocol's main metric of this row alone, in percent. So the mean is the main
      metric of all rows if that is itself a mean over rows. BLEU is not: a row has the
      sentence-level score.
    - A number: minus the distance to the right one, in percent of the range of the right numbers
      of all rows (in percent of 1 if they are all the same).
    - Plain text, which is scored by windows: minus the mean loss of each window in nats per token,
      the windows of one length after those of another.

    Args:
        protocol: how the rows were asked.
        answers: the model's answers, as ``protocol.score`` takes them.
        rows: the rows that were asked, in the same order.
    """
    if protocol.form == "text":
        windows = (loss for _, losses in answers for loss in losses)
        return [-loss for loss in (windows if protocol.lengths else answers)]
    if protocol.form == "score":
        right = [float(row["score"]) for row in rows]
        scale = (max(right) - min(right)) or 1.0
        return [-100.0 * abs(a - b) / scale for a, b in zip(answers, right, strict=True)]
    score = accuracy if protocol.form in ("label", "choice") else protocol.score
    found = (score([answer], [row]) for answer, row in zip(answers, rows, strict=True))
    return [next(iter(metrics.values())) for metrics in found]
