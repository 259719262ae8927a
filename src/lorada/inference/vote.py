"""``lorada predict RUN,RUN,RUN``: one answer of several runs to each row.

Probabilities and numbers are averaged; of what has none, such as a text that was written, the
majority decides, and where it is open the first of the runs that gave one of the commonest answers.
One model is in memory at a time, so each run answers all rows before the next one is loaded.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean

from lorada.data.rows.rows import Rows
from lorada.data.scoring.metrics import THRESHOLD
from lorada.inference.load import Run
from lorada.inference.predict import AnswerLine, predict
from lorada.support.in_words import answer_in_words
from lorada.support.majority import majority


def predict_together(
    folders: Sequence[Path], load: Callable[[Path], Run], rows_for: Callable[[Run], Rows]
) -> tuple[Rows, list[AnswerLine]]:
    """Let several runs answer rows, and make one answer of theirs to each.

    Args:
        folders: of the runs, two or more.
        load: loads a run.
        rows_for: the rows as a run can answer them.

    Returns:
        The rows, and the answers to them, as ``predict`` gives them. ``votes`` says how many of the
        runs gave the answer, where one is chosen.

    Raises:
        ValueError: for runs that have learned other classes, or rows of another form.
    """
    answers_of_runs: list[list[AnswerLine]] = []
    learned = None
    for folder in folders:
        run = load(folder)
        if learned is None:
            learned = (run.form, run.labels)
        elif learned != (run.form, run.labels):
            raise ValueError(
                f"{folder} has learned {_learned(run.form, run.labels)}, and {folders[0]} has "
                f"learned {_learned(*learned)}: a vote is of runs that learned the same"
            )
        rows = rows_for(run)
        answers_of_runs.append(list(chain.from_iterable(predict(run, rows))))
        del run  # before the next one is loaded
    return rows, one_answer_each(answers_of_runs)


def _learned(form: str, labels: Sequence[str]) -> str:
    classes = f" ({', '.join(labels)})" if labels else ""
    return f"{form} rows{classes}"


def one_answer_each(answers_of_runs: Sequence[Sequence[AnswerLine]]) -> list[AnswerLine]:
    """One answer to each row; given are runs × rows, as ``predict`` answers them."""
    first = answers_of_runs[0][0] if answers_of_runs[0] else {}
    if "probs" in first:
        return [_by_probability(lines) for lines in zip(*answers_of_runs, strict=True)]
    if "score" in first:
        return [_mean_score(lines) for lines in zip(*answers_of_runs, strict=True)]
    texts = [[_text_of(line["answer"]) for line in lines] for lines in answers_of_runs]
    voted = []
    for row, run in enumerate(majority(texts)):
        votes = sum(of_run[row] == texts[run][row] for of_run in texts)
        voted.append({**answers_of_runs[run][row], "votes": votes})
    return voted


def _by_probability(lines: Sequence[AnswerLine]) -> AnswerLine:
    """The class of the highest mean probability; of several labels those that reach a half."""
    probs = {name: fmean(line["probs"][name] for line in lines) for name in lines[0]["probs"]}
    answer = {**lines[0], "probs": probs}
    if "labels" in answer:
        answer["labels"] = [name for name, prob in probs.items() if prob >= THRESHOLD]
        return answer
    answer["label"] = max(probs, key=lambda name: probs[name])
    answer["votes"] = sum(line["label"] == answer["label"] for line in lines)
    return answer


def _mean_score(lines: Sequence[AnswerLine]) -> AnswerLine:
    return {**lines[0], "score": fmean(line["score"] for line in lines)}


def _text_of(answer: object) -> str:
    """What is counted: answers that differ in blanks at their ends are one."""
    return answer_in_words(answer).strip()
