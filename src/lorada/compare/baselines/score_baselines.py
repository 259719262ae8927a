"""The job that scores what users would take instead of a training, and what it has scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lorada.compare.baselines.examples import asked_rows, styles_for
from lorada.compare.baselines.few_shot import few_shot, kept_style
from lorada.compare.baselines.given_answers import given_answers
from lorada.compare.baselines.likeliest_answer import closed_set, likeliest_answers
from lorada.compare.baselines.linear_probe import linear_probe
from lorada.compare.baselines.row_scores import scores_of_stored
from lorada.compare.baselines.untrained import untrained_run
from lorada.compare.comparison_rows import Data, read_data
from lorada.compare.jobs.job import SCORING, Job, report
from lorada.compare.spec import Comparison
from lorada.compare.stored_plan import BASELINES, Untrained, mapping_in
from lorada.data.answer_length import answer_limit, generation_of
from lorada.data.rows.held_out_share import share_of
from lorada.data.rows.rows import Rows
from lorada.data.tokenize import context_of, written_calls
from lorada.inference.load import Run
from lorada.support.files import json_text, write_atomic
from lorada.support.in_words import counted
from lorada.support.metric_names import FREE
from lorada.support.row_sources import HEADED
from lorada.training.inputs import Prepared, prepare
from lorada.training.models.loading import own_classes

SCORES_FILE = "scores.json"  # of all baselines, when all are scored
WITHOUT_EXAMPLES = "shots0"  # the folder of the model as it is, asked in its better way
TRIED_ROWS = 20  # held-out rows that are tried whether an example fits beside them
SHARE_OF_TRAINING = 0.1  # how long the job takes beside a training, for the time that is left

Scorer = Callable[[Run, Data], Untrained | None]  # None if it would be another baseline once more


def baselines_to_score(
    comparison: Comparison, train: Rows, base: Prepared, folder: Path
) -> dict[str, Scorer]:
    """What is scored by the untrained model besides ``as_it_is``: name → what scores it.

    ``base`` is the model's tokenizer and kind; ``folder`` keeps what is half scored. Benchmarks
    have protocols of their own, and no baselines.
    """
    if not comparison.has_own_rows:
        return {}
    scorers: dict[str, Scorer] = {}
    if train.form in HEADED:
        scorers["probe"] = _probe
    if train.form not in FREE:
        return scorers
    for shots in comparison.shots:
        scorers[f"shots{shots}"] = partial(_with_examples, shots, min(comparison.shots), folder)
    if len(styles_for(train, base.tokenizer)) > 1:
        scorers["by_template"] = partial(_by_template, folder)
    # An encoder–decoder would read the answers to choose from in its input.
    if closed_set(train) and base.kind == "decoder":
        scorers["likeliest"] = partial(_likeliest, folder)
    return scorers


def _probe(run: Run, data: Data) -> Untrained:
    return linear_probe(run, data.train, list(data.held_out.values()))


def _with_examples(shots: int, fewest: int, folder: Path, run: Run, data: Data) -> Untrained:
    """Asked with examples, in the way that is better with the fewest of them."""
    style = kept_style(run, data.train, fewest, folder / f"shots{fewest}")
    held_out = list(data.held_out.values())
    return few_shot(run, data.train, held_out, shots, style, folder / f"shots{shots}")


def _by_template(folder: Path, run: Run, data: Data) -> Untrained | None:
    """The model as it is, asked by its chat template, where it answers better than to the text."""
    without_examples = folder / WITHOUT_EXAMPLES
    style = kept_style(run, data.train, 0, without_examples)
    if style == "text":
        return None  # this is ``as_it_is``
    return few_shot(run, data.train, list(data.held_out.values()), 0, style, without_examples)


def _likeliest(folder: Path, run: Run, data: Data) -> Untrained:
    style = kept_style(run, data.train, 0, folder / WITHOUT_EXAMPLES)
    candidates = closed_set(data.train)
    return likeliest_answers(run, data.train, list(data.held_out.values()), candidates, style)


def baselines_job(comparison: Comparison, base: Prepared, data: Data, folder: Path) -> Job | None:
    """The job that scores the baselines of a comparison; None if it has none to score."""
    baselines = folder / BASELINES
    train = written_calls(data.train, base.tokenizer)
    if not baselines_to_score(comparison, train, base, baselines):
        return None
    return Job(
        name="baselines",
        work=partial(score_baselines, comparison, baselines),
        folder=baselines,
        done=(baselines / SCORES_FILE).is_file,
        reads=tuple(path for _, path in comparison.shared_recipe.local_paths()),
        trainings=SHARE_OF_TRAINING,
    )


def score_baselines(comparison: Comparison, folder: Path) -> None:
    """Score the baselines of a comparison by one untrained model, into ``scores.json``."""
    report(SCORING)
    recipe = comparison.shared_recipe
    base = prepare(recipe)
    data = read_data(comparison, base.kind, own_classes(base.config))
    data = with_written_calls(data, base.tokenizer)
    run = untrained_run(recipe, data.train, folder)
    scores = {}
    for name, score in baselines_to_score(comparison, data.train, base, folder).items():
        untrained = score(run, data)
        if untrained is not None:
            scores[name] = untrained.stored()
    write_atomic(folder / SCORES_FILE, json_text(scores) + "\n")


def stored_baselines(folder: Path, error: str) -> dict[str, Untrained]:
    """What the job has scored; if it has failed, one baseline that has the error as its reason."""
    path = folder / BASELINES / SCORES_FILE
    scored: dict[str, Untrained] = mapping_in(path, dict[str, Untrained])
    if not scored and error:
        return {"baselines": Untrained(title="baselines", reason=error)}
    return scored


def with_written_calls(data: Data, tokenizer: PreTrainedTokenizerBase) -> Data:
    """The rows, in which calls of tools have the text that a model writes."""
    held_out = {name: written_calls(rows, tokenizer) for name, rows in data.held_out.items()}
    return replace(data, train=written_calls(data.train, tokenizer), held_out=held_out)


def rescored(baseline: Untrained, held_out: Sequence[Rows], metric: str) -> Untrained:
    """A baseline with the scores of its stored answers by one more metric, if it has answers."""
    if not baseline.answers:
        return baseline
    before = [baseline.row_scores, *baseline.other_draws]
    draws = []
    for row_scores, answers in zip(before, baseline.answers, strict=True):
        draws.append({**row_scores, **scores_of_stored(held_out, answers, metric)})
    first, *others = draws
    return replace(baseline, row_scores=first, other_draws=others)


def score_given(
    comparison: Comparison, held_out: Mapping[str, Rows], metric: str | None
) -> dict[str, Untrained]:
    """The scores of the answers in the files of a user.

    Raises:
        ValueError: for answers that do not fit the held-out rows.
    """
    scores = {}
    for file in comparison.answers:
        scores[f"answers {file}"] = given_answers(
            Path(file), list(held_out.values()), metric,
            of_a_share=share_of(comparison.held_out) is not None,
        )  # fmt: skip
    return scores


def check_baselines(comparison: Comparison, base: Prepared, data: Data) -> None:
    """Refuse baselines that could not be scored, before anything is trained.

    Raises:
        ValueError: for examples and answers that do not fit the rows.
    """
    asks_for_baselines = bool(comparison.shots or comparison.answers)
    if asks_for_baselines and not comparison.has_own_rows:
        raise ValueError("--shots and --answers are for rows of your own: leave them out")
    _check_shots(comparison, base, data)
    # Scored here only to find mistakes in the files; a report scores them once more.
    score_given(comparison, with_written_calls(data, base.tokenizer).held_out, None)


def _check_shots(comparison: Comparison, base: Prepared, data: Data) -> None:
    """Refuse examples in the prompt that rows or the model have no room for.

    Raises:
        ValueError: for rows that are not answered with a text, too few training rows, and where not
            one example fits beside any of the first rows.
    """
    if not comparison.shots:
        return
    most = max(comparison.shots)
    if data.train.form not in FREE:
        raise ValueError(
            f"--shots {most}: {data.train.path} has {data.train.form} rows, which are not answered "
            "with a text: leave out --shots"
        )
    if most > len(data.train.rows):
        raise ValueError(
            f"--shots {most}: there are only {counted(len(data.train.rows), 'training row')}: take "
            "fewer examples"
        )
    room = _room_for_prompts(comparison, base, data.train)
    if room is None:
        return
    for rows in data.held_out.values():
        tried = rows.part(range(min(TRIED_ROWS, len(rows.rows))))
        for style in styles_for(data.train, base.tokenizer):
            asked = asked_rows(
                tried, data.train, shots=1, draw=1, style=style, tokenizer=base.tokenizer, room=room
            )
            if any(row.examples for row in asked):  # one that fits is enough to go on
                return
    raise ValueError(
        f"--shots {most}: not one example fits beside a held-out row in the {room} tokens that the "
        "model reads: leave out --shots"
    )


def _room_for_prompts(comparison: Comparison, base: Prepared, train: Rows) -> int | None:
    """How many tokens a prompt may have beside its answer; None for any number.

    An encoder–decoder reads the prompt and writes the answer in two sequences, a decoder in one.
    """
    recipe = comparison.shared_recipe
    context = context_of(base.config)
    if context is None:
        return None
    limit = answer_limit(train, recipe, base.tokenizer, base.kind, context)
    if base.kind == "encoder_decoder":
        return min(recipe.max_length, context)
    return context - int(generation_of(recipe, train.protocol, limit)["max_new_tokens"])
