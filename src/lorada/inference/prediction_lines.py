"""Makes the lines of ``predictions.jsonl`` from a model's answers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from lorada.data.metrics import Metrics
from lorada.data.rows import HEADED, Form, Row, answer_of
from lorada.data.tokenize import prompt_of
from lorada.runs.data.rows import Rows
from lorada.support.metric_names import LOSS, as_score


class Answers(NamedTuple):
    """A model's answers to rows.

    Attributes:
        values: the answer to each row.
        losses: the loss of each row; None for a row without one.
        mean: the loss of all rows, if it is among the metrics.
        cut: for each row, whether its text was cut; None if no texts were written.
    """

    values: list[Any]
    losses: Sequence[float | None]
    mean: Metrics
    cut: list[bool] | None = None


def prediction_lines(
    rows: Rows, answers: Answers, each: list[dict[str, float]], by: str
) -> list[dict[str, Any]]:
    """The lines of rows, in their order.

    Args:
        rows: the rows.
        answers: the answers to them.
        each: the metrics of each row.
        by: which of them, or the loss, is the line's score.
    """
    # Plain text is cut into windows, which are not rows of the file.
    windows = rows.form == "text"
    found = []
    for index, (metrics, loss) in enumerate(zip(each, answers.losses, strict=True)):
        value = loss if by == LOSS else metrics[by]
        found.append({
            "row": index + 1 if windows else rows.number(index),
            "answer": None if windows else answers.values[index],
            "score": None if value is None else as_score(value, by),
            "loss": loss,
            **({} if windows else {"metrics": metrics}),
            **({"cut": True} if answers.cut and answers.cut[index] else {}),
        })  # fmt: skip
    return found


def text_and_answer(row: Row, form: Form, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a row asks, as one text, and the right answer."""
    if form in HEADED:
        text = "\n".join(filter(None, (row["text"], row.get("text_pair"))))
        return {
            "text": text,
            "right": str(row["label"]) if form == "label" else float(row["score"]),
        }
    text = prompt_of(row, form, tokenizer)
    if form == "choice":
        options = (f"{index}: {one}" for index, one in enumerate(row["candidates"]))
        return {"text": "\n".join([text, *options]), "right": row["answer"]}
    return {"text": text, "right": answer_of(row)}
