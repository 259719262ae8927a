"""What the model scores as it is, asked with some training rows as examples in the prompt."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorada.compare.baselines.examples import (
    WAYS,
    AskedRow,
    Style,
    asked_rows,
    separator_of,
    styles_for,
)
from lorada.compare.baselines.row_scores import columns
from lorada.compare.baselines.untrained import asked_by_template
from lorada.compare.stored_plan import RowScores, Untrained, record_in
from lorada.data.rows.rows import Rows
from lorada.data.scoring.score_answers import metric_names_for, score_answers
from lorada.inference.generate import generate_parts, generation_settings, room_for_prompts
from lorada.inference.load import Run, scoring
from lorada.support.files import json_text, write_atomic
from lorada.support.in_words import counted
from lorada.support.metric_names import rows_metric

DRAWS = (1, 2, 3)  # seeds of the orders that examples are taken from
CHOICE_ROWS = 32  # training rows that the two ways to ask are tried on


@dataclass(frozen=True)
class ChosenStyle:
    """How rows are asked, as a file keeps it."""

    style: Style


@dataclass(frozen=True)
class AskedOnce:
    """What a model scores that is asked all rows with one draw of examples.

    Attributes:
        row_scores: metric → the score of each row, in the order of the rows' numbers.
        answers: the answer to each row, in this order.
        examples: the mean number of examples in a prompt.
        tokens: the mean number of tokens of a prompt.
    """

    row_scores: RowScores
    answers: list[str]
    examples: float
    tokens: float


def few_shot(
    run: Run, train: Rows, held_out: Sequence[Rows], shots: int, style: Style, folder: Path
) -> Untrained:
    """Score a model that is shown examples, each draw once: what is scored in the folder is read.

    Args:
        run: the untrained model.
        train: the training rows.
        held_out: the rows to score.
        shots: how many examples a prompt has, if so many fit; 0 for none.
        style: how rows are asked.
        folder: where the scores of each draw are kept.
    """
    draws = DRAWS if shots else DRAWS[:1]
    asked = [_kept_draw(run, train, held_out, shots, draw, style, folder) for draw in draws]
    first, *others = asked
    examples = sum(draw.examples for draw in asked) / len(asked)
    notes = [WAYS[style]]
    if shots and round(examples, 1) < shots:
        notes.append(f"of {shots} examples {examples:.1f} fit on average")
    if shots:
        notes.append(f"{len(draws)} draws of examples")
    return Untrained(
        row_scores=first.row_scores,
        other_draws=[draw.row_scores for draw in others],
        title=f"{counted(shots, 'example')} in the prompt" if shots else "the model in a chat",
        note=", ".join(notes),
        prompt_tokens=sum(draw.tokens for draw in asked) / len(asked),
        answers=[draw.answers for draw in asked],
    )


def kept_style(run: Run, train: Rows, shots: int, folder: Path) -> Style:
    """How rows are asked: as a text or by the chat template; chosen once, and kept in the folder.

    The way that scores higher on some training rows is taken, so that no held-out row takes part in
    the choice.
    """
    path = folder / "style.json"
    kept = record_in(path, ChosenStyle)
    if kept is not None:
        return kept.style
    style = _better_style(run, train, shots)
    write_atomic(path, json_text(asdict(ChosenStyle(style))) + "\n")
    return style


def _better_style(run: Run, train: Rows, shots: int) -> Style:
    styles = styles_for(train, run.tokenizer)
    if len(styles) == 1:
        return styles[0]
    tried = train.part(range(min(CHOICE_ROWS, len(train.rows))))
    scores = {style: _mean_score(run, train, tried, shots, style) for style in styles}
    return max(styles, key=scores.__getitem__)


def _mean_score(run: Run, train: Rows, tried: Rows, shots: int, style: Style) -> float:
    """The mean of the main metric over some rows, higher for the better way to ask."""
    row_scores = _ask(run, train, tried, shots, DRAWS[0], style).row_scores
    first = next(iter(row_scores))
    metric = first if run.metric is None else rows_metric(Path(run.metric).name)
    values = [value or 0.0 for value in row_scores.get(metric, row_scores[first])]
    return sum(values) / len(values)


def _kept_draw(
    run: Run, train: Rows, held_out: Sequence[Rows], shots: int, draw: int, style: Style,
    folder: Path,
) -> AskedOnce:  # fmt: skip
    """Ask all held-out rows with one draw of examples, or read what a file keeps of that draw.

    So a job that was interrupted goes on with the next draw. See ``few_shot`` for the arguments.
    """
    path = folder / f"draw{draw}.json"
    kept = record_in(path, AskedOnce)
    if kept is not None:
        return kept
    parts = [_ask(run, train, rows.by_number(), shots, draw, style) for rows in held_out]
    asked = _joined(parts)
    write_atomic(path, json_text(asdict(asked)) + "\n")
    return asked


def _ask(run: Run, train: Rows, rows: Rows, shots: int, draw: int, style: Style) -> AskedOnce:
    """Ask the model all rows and score its answers."""
    asking = asked_by_template(run) if style == "chat" else run
    settings = generation_settings(asking)
    goes_on = style == "text" and shots > 0  # a base writes the next example behind its answer
    separator = separator_of(train)
    if goes_on:
        settings["stop_strings"] = [*settings.get("stop_strings", []), separator]
    room = room_for_prompts(asking, settings["max_new_tokens"])
    asked = asked_rows(
        rows, train, shots=shots, draw=draw, style=style, tokenizer=run.tokenizer, room=room
    )
    answers = _written(asking, asked, settings, templated=style == "chat")
    if goes_on:
        answers = [answer.split(separator)[0] for answer in answers]
    metrics = metric_names_for(rows, [] if run.metric is None else [run.metric])
    by_row = score_answers(rows, answers, metrics).by_row
    return AskedOnce(
        row_scores=columns(by_row),
        answers=answers,
        examples=sum(row.examples for row in asked) / len(asked),
        tokens=sum(row.tokens for row in asked) / len(asked),
    )


def _written(
    run: Run, asked: Sequence[AskedRow], settings: dict[str, Any], *, templated: bool
) -> list[str]:
    """The model's answers, in the order of the rows."""
    prompts = [row.prompt for row in asked]
    with scoring(run, base=False):
        written = dict(
            generate_parts(run, prompts, [range(len(prompts))], settings, templated=templated)
        )
    return [written[index].text for index in range(len(prompts))]


def _joined(parts: Sequence[AskedOnce]) -> AskedOnce:
    """What was asked of several sets of rows, as one."""
    first = parts[0].row_scores
    row_scores: RowScores = {}
    for name in first:
        if all(name in part.row_scores for part in parts):
            row_scores[name] = [score for part in parts for score in part.row_scores[name]]
    sizes = [len(next(iter(part.row_scores.values()))) for part in parts]
    total = sum(sizes)
    examples = sum(part.examples * size for part, size in zip(parts, sizes, strict=True))
    tokens = sum(part.tokens * size for part, size in zip(parts, sizes, strict=True))
    answers = [answer for part in parts for answer in part.answers]
    return AskedOnce(row_scores, answers, examples / total, tokens / total)
