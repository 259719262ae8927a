"""The command ``decide``: which method to take, from scores of any trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorada.cli import options as opt
from lorada.cli.score_table import ScoreLine, show_scores, what_was_tested
from lorada.cli.shared import app, console, note, print_json, suggest
from lorada.support.error_messages import unknown_name

if TYPE_CHECKING:
    from lorada.decision.decision_record import Decision
    from lorada.decision.read_scores import ScoreTable

BaselineNames = Annotated[
    list[str] | None, typer.Option(help="a name in the file without training; may be repeated")
]
AlternativeNames = Annotated[
    list[str] | None,
    typer.Option(help="a name that may be taken instead of a training; may be repeated"),
]


@app.command(rich_help_panel=opt.COMPARE)
def decide(
    scores: Annotated[
        Path,
        typer.Argument(
            exists=True,
            help="table of method, seed, row, score (and group), or logs of lm-eval, Inspect or "
            "promptfoo: a file, or a folder with METHOD-SEED for each run",
        ),
    ],
    margin: opt.Margin = None,
    metric: Annotated[
        str | None, typer.Option(help="of the logs, where they have several, such as acc_norm")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="of the scores: %, or any; 0/1 and 0/100 need none")
    ] = None,
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better", help="scores are losses or errors")
    ] = False,
    costs: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="method → parameters, seconds, bytes"),
    ] = None,
    baseline: BaselineNames = None,
    alternative: AlternativeNames = None,
    as_json: opt.Json = False,
) -> None:
    """Decide which method to take, from scores of any trainer."""
    from lorada.decision.decide import decide as decide_method
    from lorada.decision.read_scores import read_costs

    scores_read = _read_scores(scores, metric, lower_is_better=lower_is_better)
    table = scores_read.table
    alternatives = _take_alternatives(table, alternative or [], baseline or [])
    baselines = _take_baselines(table, baseline or [])
    decision = decide_method(
        table.scores,
        read_costs(costs) if costs else {},
        margin,
        lower_is_better=scores_read.lower_is_better,
        groups=table.groups,
        baselines=baselines,
        alternatives=alternatives,
        seeds={name: seeds for name, seeds in table.seeds.items() if name in table.scores},
        unit=unit,
    )
    notes = [f"• {sentence}." for sentence in scores_read.notes]
    if as_json:
        print_json(asdict(decision))
        for line in notes:
            note(line)
        return
    _show_decision(decision)
    row_count = len(next(iter(table.scores.values()))[0])
    for line in notes:
        console.print(line)
    console.print(f"• {what_was_tested(row_count, table.groups, decision)}")
    options = {"--metric": metric, "--margin": margin, "--unit": unit, "--costs": costs}
    names = {"--baseline": baseline, "--alternative": alternative}
    words = _as_words(options, names, lower_is_better=lower_is_better)
    suggest("decide", scores, *words, "--json")


def _take_baselines(table: "ScoreTable", names: Sequence[str]) -> dict[str, Any]:
    """Take what needs no training out of a table, as it is no method to choose.

    Returns:
        Name → the score of each row.
    """
    from lorada.decision.read_scores import baseline_of

    baselines = {}
    for name in dict.fromkeys(names):
        if name not in table.scores:
            raise unknown_name("--baseline", name, table.scores)
        baselines[name] = baseline_of(name, table.scores.pop(name))
    return baselines


def _take_alternatives(
    table: "ScoreTable", names: Sequence[str], baselines: Sequence[str]
) -> dict[str, Any]:
    """The runs of what may be taken instead of a training: a prompt, another model."""
    from lorada.decision.read_scores import finished_runs

    alternatives = {}
    for name in dict.fromkeys(names):
        if name in baselines:
            raise ValueError(f"{name} is a baseline and an alternative: leave one of them out")
        if name not in table.scores:
            raise unknown_name("--alternative", name, table.scores)
        alternatives[name] = finished_runs("--alternative", name, table.scores.pop(name))
    return alternatives


def _as_words(
    options: Mapping[str, object], names: Mapping[str, list[str] | None], *, lower_is_better: bool
) -> list[str]:
    """Options of ``lorada decide`` as they are typed, those that were given."""
    words = []
    for option, names_of_option in names.items():
        for name in names_of_option or []:
            words += [option, name]
    for option, value in options.items():
        if isinstance(value, float):
            words += [option, f"{value:g}"]
        elif value is not None:
            words += [option, str(value)]
    if lower_is_better:
        words.append("--lower-is-better")
    return words


def _read_scores(path: Path, metric: str | None, *, lower_is_better: bool) -> Any:
    """Read the scores in a table or in logs of other tools, as ``LogScores``."""
    from lorada.data.files.read_rows import read_rows
    from lorada.decision.read_logs import LogScores, holds_logs, read_logs
    from lorada.decision.read_scores import read_scores

    if holds_logs(path):
        return read_logs(path, metric, lower_is_better=lower_is_better)
    if metric is not None:
        raise ValueError(f"--metric {metric} is for logs, but {path} is a table with one score")
    table = read_scores(read_rows(path), str(path))
    return LogScores(table, "score", lower_is_better=lower_is_better, notes=())


def _show_decision(decision: "Decision") -> None:
    """Print a decision's sentence and its table: methods, the best first, then baselines."""
    console.print(decision.sentence)
    highest_first = not decision.lower_is_better
    best_first = sorted(decision.scores, key=decision.scores.__getitem__, reverse=highest_first)
    lines = []
    for name in best_first:
        low, high = decision.intervals[name]
        lines.append(
            ScoreLine(
                name, decision.scores[name], low, high, decision.letters.get(name, ""),
                decision.expected_loss.get(name), decision.costs.get(name, {}).get("parameters"),
                decision.mark(name),
            )
        )  # fmt: skip
    without_training = decision.baselines | decision.alternatives
    lines += [ScoreLine(name, score) for name, score in without_training.items()]
    show_scores("score", decision.score_format, lines)
