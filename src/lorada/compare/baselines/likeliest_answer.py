"""What the model scores as it is, if it only has to choose among the answers that there are.

A model that was never told how answers are worded may know the answer and write it otherwise. Where
the right answers are a small closed set, the likeliest of these says what it knows.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from lorada.compare.baselines.examples import WAYS, Style, asked_rows
from lorada.compare.baselines.row_scores import scores_of_stored
from lorada.compare.stored_plan import Untrained
from lorada.data.rows.row_content import answer_of
from lorada.data.rows.rows import Rows
from lorada.data.tasks import TASKS
from lorada.inference.answer_rows import answer_rows
from lorada.inference.load import Run, scoring
from lorada.runs.recipe import JSONL

MOST_ANSWERS = 20  # different ones in the training rows
LEAST_REPEATS = 2  # how often each of them has to be there
SHOWN_ANSWERS = 3
CHOICE = TASKS[JSONL].protocols["choice"]


def closed_set(train: Rows) -> list[str]:
    """The right answers of the training rows, if they are few and repeated; else none."""
    if train.form not in ("prompt", "messages"):
        return []
    counts = Counter(answer_of(row) for row in train.rows)
    are_few = 2 <= len(counts) <= MOST_ANSWERS
    if not are_few:
        return []
    # An answer that stands there once is no class; of an empty one there is no probability.
    are_repeated = min(counts.values()) >= LEAST_REPEATS
    if not are_repeated or "" in counts:
        return []
    return sorted(counts)


def likeliest_answers(
    run: Run, train: Rows, held_out: Sequence[Rows], candidates: list[str], style: Style
) -> Untrained:
    """The scores of the likeliest of some answers, in one way to ask."""
    answers: list[str] = []
    for rows in held_out:
        answers += _chosen(run, train, rows.by_number(), candidates, style)
    row_scores = scores_of_stored(held_out, answers, run.metric)
    shown = ", ".join(answer.strip() for answer in candidates[:SHOWN_ANSWERS])
    more = f" and {len(candidates) - SHOWN_ANSWERS} more" if len(candidates) > SHOWN_ANSWERS else ""
    return Untrained(
        row_scores,
        title="the likeliest of the known answers",
        note=f"{WAYS[style]}, by the log-probability per token of {shown}{more}",
        answers=[answers],
    )


def _chosen(run: Run, train: Rows, rows: Rows, candidates: list[str], style: Style) -> list[str]:
    """The likeliest candidate for each row, by its log-probability per token."""
    asked = asked_rows(
        rows, train, shots=0, draw=0, style=style, tokenizer=run.tokenizer, room=None
    )
    begin = _begin_token(run)
    choices = [
        {"prompt": row.prompt.removeprefix(begin), "candidates": candidates, "answer": 0}
        for row in asked
    ]
    as_choices = replace(rows, rows=choices, form="choice", protocol=CHOICE, labels=(), read=None)
    # The model answers rows of the form ``choice``: each candidate is scored behind the prompt. The
    # tokenizer puts its begin token ahead of these once more, so it was taken off above.
    with scoring(run, base=False):
        chosen = dict(answer_rows(replace(run, form="choice"), as_choices))
    return [candidates[chosen[index].value] for index in range(len(choices))]


def _begin_token(run: Run) -> str:
    """The text of the token that the tokenizer itself puts ahead of a text; empty if none."""
    ids = run.tokenizer("").input_ids
    begin = run.tokenizer.bos_token_id
    puts_it_ahead = begin is not None and ids[:1] == [begin]
    return run.tokenizer.bos_token if puts_it_ahead else ""
