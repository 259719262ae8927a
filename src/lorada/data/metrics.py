"""Metrics of a model's answers: (answers, rows) → metrics, in percent unless noted.

Those that a user can choose among are in ``metric_names``. A metric that is undefined for these
answers is None. ROUGE, chrF and BLEU come from the libraries of the extra ``metrics``.
"""

import math
import runpy
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from lorada.data.json_answers import is_json, json_match
from lorada.data.row_content import answer_of
from lorada.data.task import Metrics, Protocol
from lorada.data.tool_calls import calls_of, ends_in_calls, has_calls, same_calls
from lorada.support.error_messages import needs_extra
from lorada.support.metric_names import FREE, NAMES, names_for
from lorada.support.row_sources import CODE, Form, Row

MOST_CLASSES = 20  # of texts that a model writes
MOST_LETTERS = 40  # of the name of one
LEAST_OF_CLASS = 3  # rows of each of these, in the mean
THRESHOLD = 0.5  # the probability from which a text has one of several labels
Window = tuple[float, int]  # mean loss in nats, and the number of tokens that it is the mean of

# The scripts for WMT16 (Sennrich et al., 2016) replace letters with a cedilla by the Romanian ones
# with a comma, then remove the marks from all letters.
COMMAS = str.maketrans("ŞşŢţ", "ȘșȚț")
PLAIN = str.maketrans("ȘșȚțĂăÂâÎî", "SsTtAaAaIi")


def exact_match(outputs: list[str], rows: list[Row]) -> Metrics:
    """Percent of outputs that equal a right answer, apart from white space at the ends.

    Calls of tools are equal if their names and arguments are.
    """
    right = sum(_is_right(output, row) for output, row in zip(outputs, rows, strict=True))
    return {"exact_match": 100.0 * right / len(rows)}


def _is_right(output: str, row: Row) -> bool:
    if ends_in_calls(row):
        right = answer_of(row).strip()
        return same_calls(output, right, len(calls_of(row["messages"][-1])))
    return output.strip() in _right_answers(row)


def contains(output: str, row: Row) -> float:
    """100 if a right answer stands somewhere in an output, apart from white space at its ends.

    An empty answer stands in an empty output alone; of calls of tools, all must be in the output.
    """
    if ends_in_calls(row):
        right = answer_of(row).strip()
        return 100.0 * has_calls(output, right, len(calls_of(row["messages"][-1])))
    for right in _right_answers(row):
        if right in output if right else not output.strip():
            return 100.0
    return 0.0


def _right_answers(row: Row) -> list[str]:
    """The right answers to a row without white space at their ends; SQuAD may have several."""
    return [text.strip() for text in (answer_of(row), *row.get("other_answers", ()))]


def accuracy(predicted: list[Any], rows: list[Row]) -> Metrics:
    """Percent of rows with the right label, or the index of the right candidate."""
    right = sum(p == _target(row) for p, row in zip(predicted, rows, strict=True))
    return {"accuracy": 100.0 * right / len(rows)}


def _target(row: Row) -> Any:
    return str(row["label"]) if "label" in row else int(row["answer"])


def matthews(predicted: list[str], rows: list[Row]) -> Metrics:
    """Matthews' correlation of two classes in percent, 0 if either side has only one; accuracy."""
    targets = [_target(row) for row in rows]
    one = max(targets)
    found = _correlation([p == one for p in predicted], [t == one for t in targets])
    return {"matthews": found or 0.0, **accuracy(predicted, rows)}


def accuracy_and_f1(predicted: list[str], rows: list[Row], positive: str) -> Metrics:
    """Accuracy and the F1 score of the class ``positive``, in percent."""
    f1 = _f1(predicted, [_target(row) for row in rows], positive)
    return {**accuracy(predicted, rows), "f1": f1}


def _f1(predicted: Sequence[str | None], targets: list[str], name: str) -> float:
    """2·hits / (predicted + right) of a class in percent; 0 if it is on neither side."""
    hits = sum(p == t == name for p, t in zip(predicted, targets, strict=True))
    return 200.0 * hits / ((predicted.count(name) + targets.count(name)) or 1)


def classes(predicted: list[str], rows: list[Row]) -> Metrics:
    """Accuracy, the mean of the classes' recalls, macro F1, and the recall of each class."""
    targets = [_target(row) for row in rows]
    return {**accuracy(predicted, rows), **class_scores([*predicted], targets)}


def class_scores(predicted: list[str | None], targets: list[str]) -> Metrics:
    """The mean of the classes' recalls, macro F1, and the recall of each class, in percent.

    What names no class is None, and is no class itself in the mean of F1. ``unfound`` says in words
    which classes are never found.
    """
    counts = dict(sorted(Counter(targets).items()))
    hits = Counter(t for p, t in zip(predicted, targets, strict=True) if p == t)
    recalls = {f"recall_{name}": 100.0 * hits[name] / count for name, count in counts.items()}
    unfound = ", ".join(
        f"0 of {n} rows of {name!r}" for name, n in counts.items() if not hits[name]
    )
    named = {name for name in (*counts, *predicted) if name is not None}
    return {
        "balanced_accuracy": fmean(recalls.values()),
        "macro_f1": fmean(_f1(predicted, targets, name) for name in named),
        **recalls,
        **({"unfound": unfound} if unfound else {}),
    }


def weighted_by_class(scores: Sequence[float], targets: Sequence[str]) -> list[float]:
    """Each row's score times a weight by which each class counts as much as any other."""
    counts = Counter(targets)
    weights = {name: len(targets) / len(counts) / count for name, count in counts.items()}
    return [score * weights[target] for score, target in zip(scores, targets, strict=True)]


def answer_classes(outputs: list[str], rows: list[Row]) -> tuple[list[str | None], list[str]]:
    """What a model wrote and what is right, as classes.

    An output that is right by ``exact_match`` is the right answer; one that is the right answer of
    no row at all is None.
    """
    targets = [answer_of(row).strip() for row in rows]
    known, named = set(targets), list[str | None]()
    for output, row, target in zip(outputs, rows, targets, strict=True):
        text = output.strip()
        if _is_right(output, row):
            named.append(target)
        elif text in known and text != target:
            named.append(text)
        else:
            named.append(None)
    return named, targets


def are_classes(targets: Sequence[str]) -> bool:
    """Whether right answers are short names of a few classes, as of a text that is good or bad."""
    names = set(targets)
    few = 2 <= len(names) <= MOST_CLASSES and LEAST_OF_CLASS * len(names) <= len(targets)
    return few and all(len(name) <= MOST_LETTERS for name in names)


def label_sets(predicted: list[list[str]], rows: list[Row]) -> Metrics:
    """Of texts with several labels: F1 in four ways, exact match, and the F1 of each label.

    ``f1`` is the mean of the rows' F1, so that methods can be compared by single rows. ``micro_f1``
    is that of all decisions together, and ``macro_f1`` the mean of the labels' F1. ``threshold`` is
    the probability from which a label is given. ``unfound`` says in words which are never given.
    """
    targets = [row["labels"] for row in rows]
    given = Counter(label for labels in predicted for label in labels)
    right = Counter(label for labels in targets for label in labels)
    pairs = list(zip(predicted, targets, strict=True))
    hits = Counter(label for one, other in pairs for label in set(one) & set(other))
    by_label = {
        label: 200.0 * hits[label] / (given[label] + right[label])
        for label in sorted({*given, *right})
    }
    either = given.total() + right.total()
    unfound = ", ".join(f"0 of {n} rows of {name!r}" for name, n in sorted(right.items())
                        if not hits[name])  # fmt: skip
    return {
        "f1": fmean(set_f1(*pair) for pair in pairs),
        "micro_f1": 200.0 * hits.total() / either if either else 100.0,
        "macro_f1": fmean(by_label.values()) if by_label else 100.0,
        "exact_match": fmean(100.0 * (set(one) == set(other)) for one, other in pairs),
        "threshold": THRESHOLD,
        **{f"f1_{label}": value for label, value in by_label.items()},
        **({"unfound": unfound} if unfound else {}),
    }


def set_f1(predicted: Sequence[str], right: Sequence[str]) -> float:
    """F1 of the labels of one text in percent; 100 where it rightly has none."""
    if not predicted and not right:
        return 100.0
    hits = len(set(predicted) & set(right))
    return 200.0 * hits / (len(set(predicted)) + len(set(right)))


def numbers(predicted: list[float], rows: list[Row]) -> Metrics:
    """MAE and RMSE in the unit of the rows, R² (1 is perfect), and the correlations."""
    targets = np.array([float(row["score"]) for row in rows])
    errors = np.array(predicted) - targets
    spread = float(np.square(targets - targets.mean()).sum())
    return {
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.sqrt(np.square(errors).mean())),
        "r2": 1.0 - float(np.square(errors).sum()) / spread if spread else None,
        **correlations(predicted, rows),
    }


def correlations(predicted: list[float], rows: list[Row]) -> Metrics:
    """Pearson's and Spearman's correlation in percent; None if either side is constant."""
    import pandas as pd

    targets = [float(row["score"]) for row in rows]
    ranks = (list(pd.Series(values).rank()) for values in (predicted, targets))  # ties share theirs
    return {"pearson": _correlation(predicted, targets), "spearman": _correlation(*ranks)}


def _correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Pearson's correlation in percent; None if either side is constant."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return None
    return 100.0 * float(np.corrcoef(one, other)[0, 1])


def perplexity(windows: list[Window], rows: list[Row]) -> Metrics:
    """The exponential of the mean loss of all tokens that are predicted in the windows."""
    tokens = sum(count for _, count in windows)
    return {"perplexity": math.exp(sum(loss * count for loss, count in windows) / tokens)}


def rouge(outputs: list[str], rows: list[Row]) -> Metrics:
    """ROUGE-1, ROUGE-2 and ROUGE-L: F1 in percent, the mean over rows (Lin, 2004).

    rouge_score computes them, with Porter's stemmer. ROUGE-L reads a text as one sequence
    (``rougeL``); for texts of one line, such as XSum's, ``rougeLsum`` is the same.
    """
    with needs_extra("metrics"):
        from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, use_stemmer=True)
    pairs = zip(outputs, rows, strict=True)
    found = [scorer.score(answer_of(row), output) for output, row in pairs]
    return {name: sum(100.0 * one[name].fmeasure for one in found) / len(found) for name in names}


def rouge_l(output: str, row: Row) -> float:
    """The ROUGE-L of an output, as ``rouge`` computes it."""
    return float(rouge([output], [row])["rougeL"])


def chrf(output: str, row: Row) -> float:
    """The sentence-level chrF2 of an output by sacrebleu (Popović, 2015)."""
    with needs_extra("metrics"):
        from sacrebleu import sentence_chrf

    return float(sentence_chrf(output, [answer_of(row)]).score)


def bleu(outputs: list[str], rows: list[Row]) -> Metrics:
    """BLEU of the whole set in percent, by sacrebleu, in two ways (Papineni et al., 2002).

    ``bleu_ro``, as published for English to Romanian: outputs and references are normalised by
    ``normalised_romanian``, and sacrebleu does not tokenise them again. ``bleu``: nothing is
    normalised, and sacrebleu tokenises with its default, 13a. A set of one row has sacrebleu's
    sentence-level BLEU, which leaves out n-grams that are longer than the text.
    """
    with needs_extra("metrics"):
        from sacrebleu.metrics.bleu import BLEU

    references = [answer_of(row) for row in rows]
    romanian, alone = normalised_romanian(), len(rows) == 1
    # Without ``force``, sacrebleu warns that the texts look tokenised.
    normalised = BLEU(tokenize="none", force=True, effective_order=alone).corpus_score(
        [romanian(text) for text in outputs], [[romanian(text) for text in references]]
    )
    plain = BLEU(effective_order=alone).corpus_score(outputs, [references])
    return {"bleu_ro": float(normalised.score), "bleu": float(plain.score)}


def normalised_romanian() -> Callable[[str], str]:
    """A function that normalises Romanian text as published BLEU scores do.

    In order: Moses makes punctuation ASCII and removes control characters; cedillas become commas;
    letters lose their marks; Moses splits the text into tokens, joined by spaces, without escapes.
    """
    with needs_extra("metrics"):
        from sacremoses import MosesPunctNormalizer, MosesTokenizer

    punctuation = MosesPunctNormalizer(
        lang="ro", pre_replace_unicode_punct=True, post_remove_control_chars=True
    )
    tokens = MosesTokenizer(lang="ro")

    def normalise(text: str) -> str:
        text = punctuation.normalize(text).translate(COMMAS).translate(PLAIN)
        return str(tokens.tokenize(text, return_str=True, escape=False))

    return normalise


RowValue = Callable[[str, Row, Row], float]  # of an answer, its row, and that row as it was read
# Those that are computed from an answer and its row only when they are asked for.
LATER: dict[str, Callable[[str, Row], float]] = {
    "json_match": json_match,
    "rougeL": rouge_l,
    "chrf": chrf,
}


def fits(metric: str, form: Form) -> bool:
    """Whether rows of a form can be scored by a metric."""
    return metric in NAMES[form] or (CODE in metric and form in FREE)


def refuse_metric(asked: str, form: Form) -> None:
    """Refuse a metric that rows of a form cannot be scored by."""
    if not fits(asked, form):
        raise ValueError(f"metric={asked!r} does not score {form} rows: take {names_for(form)}")
    if CODE in asked and not (path := Path(asked.rpartition(":")[0])).is_file():
        raise FileNotFoundError(f"metric={asked}: there is no file {path}")


def refuse_unnamed(metric: str | None, where: object, option: str = "--metric ") -> None:
    """Refuse a function that a saved file names and the command does not, by ``option``."""
    if metric is not None and CODE in metric:
        raise ValueError(
            f"{where} is scored by {metric}, and code of a file runs only if you name it: add "
            f"{option}{metric}"
        )


def row_value(metric: str) -> RowValue | None:
    """What computes a metric of one row from its answer; None for a metric that is always there.

    Code of the user's file runs here. It gets all columns of the row, as the file has them.
    """
    if metric in LATER:
        later = LATER[metric]
        return lambda answer, row, columns: later(answer, row)
    if CODE not in metric:
        return None
    path, _, name = metric.rpartition(":")
    try:
        function = runpy.run_path(path)[name]
    except Exception as error:  # of any class: it is the user's code
        raise ValueError(f"metric={metric} cannot be loaded: {error!r}") from error

    def of_row(answer: str, row: Row, columns: Row) -> float:
        prompt = row["messages"][-2]["content"] if "messages" in row else row["prompt"]
        try:
            value = float(function(prompt, answer_of(row), answer, columns))
        except Exception as error:  # again of any class
            raise ValueError(f"metric={metric} failed for {answer!r}: {error!r}") from error
        if not math.isfinite(value):
            raise ValueError(f"metric={metric} gave {value} for {answer!r}: it must be finite")
        return value

    return of_row


def row_metrics(protocol: Protocol, answers: list[Any], rows: list[Row]) -> list[dict[str, float]]:
    """The metrics of each answer that cost nothing, without the row's loss.

    - A class: ``accuracy``, 100 if it is right, else 0; and ``balanced_accuracy``, the same times
      a weight by which each class counts as much as any other.
    - Several labels: ``f1``, as of ``set_f1``, and ``exact_match``, 100 if all are right, else 0.
    - A candidate: ``accuracy``. A number: ``mae``, its distance from the right one.
    - A text: the protocol's main metric of this row alone, in percent; of BLEU it is the
      sentence-level score. A text that is asked to be exact has ``contains`` too, and
      ``json_match`` if a right answer is an object or a list of JSON.
    - Plain text, which is scored by windows: the mean ``loss`` of each window in nats per token,
      the windows of one length after those of another. Where the last window is shorter, each loss
      is weighted by the window's share of the tokens, so that the mean is that of all tokens.
    """
    if protocol.form == "text":
        if protocol.lengths:
            return [{"loss": loss} for _, losses in answers for loss in losses]
        mean = sum(count for _, count in answers) / len(answers)
        return [{"loss": loss * count / mean} for loss, count in answers]
    pairs = list(zip(answers, rows, strict=True))
    if protocol.form == "score":
        return [{"mae": abs(answer - float(row["score"]))} for answer, row in pairs]
    if protocol.form == "labels":
        return [
            {
                "f1": set_f1(answer, row["labels"]),
                "exact_match": 100.0 * (set(answer) == set(row["labels"])),
            }
            for answer, row in pairs
        ]
    score = accuracy if protocol.form in ("label", "choice") else protocol.score
    found = [dict([next(iter(score([answer], [row]).items()))]) for answer, row in pairs]
    if protocol.form == "label":
        targets = [_target(row) for row in rows]
        weighted = weighted_by_class([one["accuracy"] for one in found], targets)
        for one, value in zip(found, weighted, strict=True):
            one["balanced_accuracy"] = value
    if protocol.score is exact_match:
        for one, pair in zip(found, pairs, strict=True):
            one["contains"] = contains(*pair)
        if any(is_json(answer_of(row)) for row in rows):
            for one, pair in zip(found, pairs, strict=True):
                one["json_match"] = json_match(*pair)
    return found
