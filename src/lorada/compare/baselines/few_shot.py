"""What the model scores as it is, asked with some training rows as examples in the prompt."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lorada.compare.baselines.examples import SEPARATOR, AskedRow, Style, asked_rows, styles_for
from lorada.compare.baselines.untrained import asked_by_template
from lorada.data.rows.rows import Rows
from lorada.data.scoring.score_answers import metric_names_for, score_answers
from lorada.inference.generate import generate_parts, generation_settings, room_for_prompts
from lorada.inference.load import Run, scoring
from lorada.support.files import json_text, write_atomic
from lorada.support.metric_names import rows_metric

DRAWS = (1, 2, 3)  # seeds of the orders that examples are taken from
CHOICE_ROWS = 32  # training rows that the two ways to ask are tried on


@dataclass(frozen=True)
class Asked:
    """What a model scores that is asked all rows in one way.

    Attributes:
        row_scores: metric → the score of each row, in the order of the rows' numbers.
        examples: the mean number of examples in a prompt.
        tokens: the mean number of tokens of a prompt.
    """

    row_scores: dict[str, list[float]]
    examples: float
    tokens: float


@dataclass(frozen=True)
class FewShot:
    """The scores with examples in the prompt, of each draw of examples."""

    style: Style
    draws: list[Asked]


def few_shot(run: Run, train: Rows, held_out: Sequence[Rows], shots: int, folder: Path) -> FewShot:
    """Score a model that is shown examples, each draw once: what is scored in the folder is read.

    Where a row can be asked as a text and by the chat template, the way that scores higher on some
    training rows is taken, so that no held-out row takes part in the choice.

    Args:
        run: the untrained model.
        train: the training rows.
        held_out: the rows to score.
        shots: how many examples a prompt has, if so many fit; 0 for none.
        folder: where the choice and the scores of each draw are kept.
    """
    style = _kept_style(run, train, shots, folder)
    draws = DRAWS if shots else DRAWS[:1]
    asked = [_kept_draw(run, train, held_out, shots, draw, style, folder) for draw in draws]
    return FewShot(style, asked)


def _kept_style(run: Run, train: Rows, shots: int, folder: Path) -> Style:
    """The better way to ask, chosen once and kept."""
    path = folder / "style.json"
    if path.is_file():
        return TypeAdapter(Style).validate_json(path.read_bytes())
    style = _better_style(run, train, shots)
    write_atomic(path, json_text(style) + "\n")
    return style


def _better_style(run: Run, train: Rows, shots: int) -> Style:
    styles = styles_for(train, run.tokenizer)
    if len(styles) == 1:
        return styles[0]
    tried = train.part(range(min(CHOICE_ROWS, len(train.rows))))
    scores = {style: _mean_score(run, train, tried, shots, style) for style in styles}
    return max(styles, key=lambda style: scores[style])


def _mean_score(run: Run, train: Rows, tried: Rows, shots: int, style: Style) -> float:
    """The mean of the main metric over some rows, higher for the better way to ask."""
    scores = _ask(run, train, tried, shots, DRAWS[0], style).row_scores
    first = next(iter(scores))
    metric = first if run.metric is None else rows_metric(Path(run.metric).name)
    values = scores.get(metric, scores[first])
    return sum(values) / len(values)


def _kept_draw(
    run: Run, train: Rows, held_out: Sequence[Rows], shots: int, draw: int, style: Style,
    folder: Path,
) -> Asked:  # fmt: skip
    path = folder / f"draw{draw}.json"
    if path.is_file():
        return TypeAdapter(Asked).validate_json(path.read_bytes())
    parts = [_ask(run, train, _by_number(rows), shots, draw, style) for rows in held_out]
    asked = _joined(parts)
    write_atomic(path, json_text(asdict(asked)) + "\n")
    return asked


def _by_number(rows: Rows) -> Rows:
    """Rows in the order of their numbers in the file, as predictions are kept."""
    return rows.part(sorted(range(len(rows.rows)), key=rows.number))


def _ask(run: Run, train: Rows, rows: Rows, shots: int, draw: int, style: Style) -> Asked:
    """Ask the model all rows and score its answers."""
    asking = asked_by_template(run) if style == "chat" else run
    settings = generation_settings(asking)
    room = room_for_prompts(asking, settings["max_new_tokens"])
    asked = asked_rows(
        rows, train, shots=shots, draw=draw, style=style, tokenizer=run.tokenizer, room=room
    )
    answers = _written(asking, asked, settings, style, shots)
    metrics = metric_names_for(rows, [] if run.metric is None else [run.metric])
    scores = score_answers(rows, answers, metrics).by_row
    return Asked(
        row_scores={name: [row[name] for row in scores] for name in scores[0]},
        examples=sum(row.examples for row in asked) / len(asked),
        tokens=sum(row.tokens for row in asked) / len(asked),
    )


def _written(
    run: Run, asked: Sequence[AskedRow], settings: dict[str, Any], style: Style, shots: int
) -> list[str]:
    """The model's answers. One that goes on with the next example ends where that begins."""
    prompts = [row.prompt for row in asked]
    with scoring(run, base=False):
        written = dict(
            generate_parts(run, prompts, [range(len(prompts))], settings, templated=style == "chat")
        )
    answers = [written[index].text for index in range(len(prompts))]
    if style == "text" and shots:
        answers = [answer.lstrip("\n").split(SEPARATOR)[0] for answer in answers]
    return answers


def _joined(parts: Sequence[Asked]) -> Asked:
    """What was asked of several sets of rows, as one."""
    names = [name for name in parts[0].row_scores if all(name in p.row_scores for p in parts)]
    sizes = [len(part.row_scores[names[0]]) for part in parts]
    total = sum(sizes)
    return Asked(
        row_scores={name: [score for p in parts for score in p.row_scores[name]] for name in names},
        examples=sum(p.examples * n for p, n in zip(parts, sizes, strict=True)) / total,
        tokens=sum(p.tokens * n for p, n in zip(parts, sizes, strict=True)) / total,
    )
