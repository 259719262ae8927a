"""GLUE: eight tasks on one sentence or a pair; Wang et al., "GLUE" (2018).

The paper says that it reports accuracy for every task, but its numbers for CoLA and STS-B are the
usual Matthews' and Pearson's correlations, so those come first here.
"""

from functools import partial

from lorada.data.scoring.metrics import accuracy, accuracy_and_f1, correlations, matthews
from lorada.data.task import ANY_KIND, Protocol, Score, Source, Task
from lorada.support.row_sources import Row

HUB = "nyu-mll/glue"


def _row(row: Row, texts: tuple[str, ...], labels: tuple[str, ...]) -> Row:
    """The texts of a row, with its class, or its score if there are no classes."""
    label = row["label"]
    last = len(labels) - 1 if labels else 5  # scores are from 0 to 5
    if type(label) not in (int, float) or not 0 <= label <= last:
        raise ValueError(f"label {label!r} is not in 0–{last}: is this a test split?")
    converted = {"text": row[texts[0]]}
    if len(texts) > 1:
        converted["text_pair"] = row[texts[1]]
    if labels:
        return {**converted, "label": labels[label]}
    return {**converted, "score": float(label)}


def _task(
    name: str,
    summary: str,
    texts: tuple[str, ...],
    labels: tuple[str, ...],
    score: Score = accuracy,
    test: tuple[str, ...] = ("validation",),
) -> Task:
    def source(split: str) -> Source:
        return Source(f"glue/{name}", split, HUB, name)

    convert = partial(_row, texts=texts, labels=labels)
    return Task(
        summary=summary,
        benchmark="GLUE",
        protocols={
            "classify": Protocol(
                "label" if labels else "score", ANY_KIND, convert, score, labels=labels
            )
        },
        train={"own": source("train")},
        test={split.removeprefix("validation").strip("_"): source(split) for split in test},
    )


PAIR = ("sentence1", "sentence2")
ENTAILS = ("entailment", "not_entailment")

GLUE = {
    "cola": _task(
        "cola", "is a sentence grammatical? Matthews' correlation",
        ("sentence",), ("unacceptable", "acceptable"), matthews,
    ),
    "sst2": _task(
        "sst2", "sentiment of a sentence; accuracy", ("sentence",), ("negative", "positive"),
    ),
    "mrpc": _task(
        "mrpc", "do two sentences say the same? accuracy and F1",
        PAIR, ("not_equivalent", "equivalent"), partial(accuracy_and_f1, positive="equivalent"),
    ),
    "stsb": _task(
        "stsb", "how similar are two sentences, 0–5? Pearson's correlation",
        PAIR, (), correlations,
    ),
    "qqp": _task(
        "qqp", "do two questions ask the same? accuracy and F1",
        ("question1", "question2"), ("not_duplicate", "duplicate"),
        partial(accuracy_and_f1, positive="duplicate"),
    ),
    "mnli": _task(
        "mnli", "does a premise entail a hypothesis? accuracy, matched and mismatched",
        ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"),
        test=("validation_matched", "validation_mismatched"),
    ),
    "qnli": _task(
        "qnli", "does a sentence answer a question? accuracy", ("question", "sentence"), ENTAILS,
    ),
    "rte": _task("rte", "does a text entail a sentence? accuracy", PAIR, ENTAILS),
}  # fmt: skip
