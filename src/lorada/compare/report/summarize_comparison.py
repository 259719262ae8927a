"""What is true of a comparison: scores, tests, the decision, costs; all that its report shows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np

from lorada.compare.read_results import UNFINISHED, CandidateResult, Results, ScoredRun
from lorada.compare.report.verdict_and_limits import (
    PERCENT,
    Scale,
    beside_the_loss,
    limits,
    scale_of,
    score_of,
    verdict,
    windows_overlap,
)
from lorada.compare.stored_plan import Candidate, ComparisonPlan, Untrained
from lorada.decision.decide import decide
from lorada.decision.decision_record import Decision
from lorada.decision.run_variances import TINY, Scores
from lorada.decision.statistics import by_group, has_no_spread, mean_score
from lorada.runs.folder import trains_base
from lorada.support.files import as_typed
from lorada.support.in_words import answer_in_words
from lorada.support.metric_names import (
    ERROR,
    LOSS,
    as_score,
    lower_is_better,
    main_metric,
    rows_metric,
)
from lorada.support.row_sources import BUILTIN, HEADED, file_names

FREE = {"prompt", "messages"}  # forms of rows that are answered with a free text
MOST_ROWS = 50  # disagreements that a report shows
RIGHT, WRONG = 100.0, 0.0  # scores of rows that are right or wrong
BASELINES = {"as_it_is": "the model as it is", "commonest": "the commonest answer"}


@dataclass(frozen=True)
class Baseline:
    """A score without training, or the reason why there is none."""

    name: str  # ``the model as it is`` or ``the commonest answer``
    score: float | None = None  # as of a candidate
    low: float | None = None  # ends of its 95 % confidence interval
    high: float | None = None
    answer: str | None = None  # the commonest answer itself
    reason: str | None = None


@dataclass(frozen=True)
class Disagreement:
    """A held-out row that some candidates get right in most seeds and others do not."""

    rows: str  # name of the held-out rows, such as ``test.jsonl``
    row: int  # number in that file, from 1
    right: tuple[str, ...]  # labels of the candidates that get it right
    wrong: tuple[str, ...]  # of the others
    text: str | None = None  # the row itself, if it is stored
    answer: str | None = None  # its right answer, likewise


@dataclass(frozen=True)
class Procedure:
    """How every run of a comparison was trained, as a methods section states it."""

    steps: int  # optimizer steps of each training
    batch: int  # rows of a device in a step
    train_rows: int  # rows to learn from
    rows_set_aside: int  # of these, for the search for learning rates; 0 without one


@dataclass(frozen=True)
class Summary:
    """Everything that the report of a comparison shows."""

    verdict: str  # the result in a few sentences
    sentences: tuple[str, ...] = ()  # what limits it
    model: str = ""  # the base model
    task: str = ""  # the task or the file of the held-out rows
    rows: int = 0  # number of scored rows
    seeds: tuple[int, ...] = ()  # of the final runs
    metric: str = ""  # the main metric
    own_unit: str = ""  # of a user's function: ``%`` if its values are right or wrong, or shares
    best: str = ""  # label of the candidate to take; empty if nothing is scored
    # What the best is expected to score on new rows and seeds, between which ends (95 %), how
    # probable it is that it is the best, and the expected loss after three more seeds of each.
    expected_score: float | None = None
    expected_interval: tuple[float, float] | None = None
    p_best: float | None = None
    loss_after_more_runs: float | None = None
    lines: tuple[CandidateResult, ...] = ()  # the best score first, those without a score last
    baselines: tuple[Baseline, ...] = ()
    margin: float | None = None  # that a cheaper candidate may cost, in the unit of the metric
    disagreements: tuple[Disagreement, ...] = ()  # the most divided rows first
    commands: dict[str, str] = field(default_factory=dict)  # what for → shell command
    hardware: tuple[str, ...] = ()  # one text for each kind of machine that ran a part
    versions: dict[str, str] = field(default_factory=dict)  # package → version
    procedure: Procedure | None = None

    @property
    def scored(self) -> list[CandidateResult]:
        """The candidates that have a score, the best first."""
        return [line for line in self.lines if line.score is not None]

    @property
    def scale(self) -> Scale:
        """How its scores are written."""
        return scale_of(self.metric, self.own_unit)

    def plain(self) -> dict[str, Any]:
        """All of it, for ``report.json``."""
        return asdict(replace(self, lines=())) | {"lines": [one.plain() for one in self.lines]}


def summarize(results: Results, margin: float | None = None) -> Summary:
    """Summarize a comparison, finished or not; ``margin`` is that of ``write_report``."""
    ran = [one for one in results.candidates if one.runs]
    # Of several names of rows with slashes between.
    main = dict.fromkeys(main_metric(each.scores) for one in ran for each in one.metrics)
    metric = results.metric or "/".join(main)
    scale = scale_of(metric, results.own_unit.name)
    scored = [_with_facts(one, metric, results.own_unit.factor) for one in ran]
    scored.sort(key=lambda one: float(one.scores.mean()), reverse=True)
    baselines = _baselines(results, metric)
    # While others wait, there is nothing yet that the first one could be better than.
    reasons = [one.reason or UNFINISHED for one in results.candidates if not one.runs]
    alone = len(ran) == 1 and any(reason.endswith(UNFINISHED) for reason in reasons)
    decision = None if alone else _decided(results, scored, baselines, metric, margin)
    lines = [_with_decision(one, decision) for one in scored]
    taken = (c for c in lines if decision is None or c.label == decision.pick)
    best = None if alone or results.rows_without_loss else next(taken, None)
    top = lines[0] if lines and not alone else None
    said = verdict(decision, top, scale, results)
    if decision is not None and (beside := beside_the_loss(lines)):
        said = f"{said} {beside}"
    commands = {} if best is None else commands_of(results.folder, best)
    if decision is not None and best is None and lines:  # to look at what was not enough
        commands = commands_of(results.folder, lines[0], trusted=False)
    by_loss = as_typed("lorada", "report", results.folder, "--metric", "loss")
    if alike := _all_alike(lines, scale, by_loss):
        said = f"{said} Yet {alike}" if best else alike
        commands = {"write the report by the loss": by_loss, **commands}
    waiting = any((one.reason or "").endswith(UNFINISHED) for one in results.candidates)
    if results.runs_left or waiting:
        resume = as_typed("lorada", "compare", results.folder, "--resume")
        commands = {"go on with it": resume, **commands}
    lines += [_with_decision(one, decision) for one in results.candidates if not one.runs]
    tested = _tested(lines, decision, results.groups)
    runs = [run for one in lines for run in one.runs]
    seeds = sorted({run.seed for run in runs})
    return Summary(
        verdict=said,
        sentences=tuple(limits(results, lines, decision, tested)),
        model=str(results.asked.recipe.get("model", "")),
        task=", ".join(source(results, name) for name in results.plan.held_out),
        rows=len(results.rows),
        seeds=tuple(seeds if seeds and results.asked.until is not None else results.asked.seeds),
        metric=metric,
        own_unit=results.own_unit.name,
        best=best.label if best else "",
        expected_score=decision.expected_score if decision else None,
        expected_interval=decision.expected_interval if decision else None,
        p_best=decision.p_best if decision else None,
        loss_after_more_runs=decision.loss_after_more_runs if decision else None,
        lines=tuple(lines),
        baselines=tuple(one for one, _ in baselines),
        margin=decision.margin if decision else None,
        disagreements=tuple(_disagreements(results, lines)),
        commands=commands,
        hardware=_machines(results.plan.hardware, runs),
        versions=results.plan.versions,
        procedure=_procedure(results.plan),
    )  # fmt: skip


def _procedure(plan: ComparisonPlan) -> Procedure:
    return Procedure(plan.steps, plan.batch, plan.train.rows, plan.dev_rows)


def _with_facts(one: CandidateResult, metric: str, factor: float) -> CandidateResult:
    """A candidate with what its runs show.

    ``metric`` is the main one, and ``factor`` makes percent of a user's own that gives shares.
    """
    score = float(one.scores.mean())
    values = [each.scores.get(name) for name in metric.split("/") for each in one.metrics]
    mean = _mean([factor * value for value in values if isinstance(value, int | float)])
    results = [run.result for run in one.runs]
    peaks = [each.peak_memory_bytes for each in results if each.peak_memory_bytes is not None]
    step_seconds = [
        float(each.seconds_per_step) for each in results if each.seconds_per_step is not None
    ]
    rates = [rate for run in one.runs if (rate := _learning_rate(run)) is not None]
    maps = [rate for run in one.runs if (rate := _map_rate(one.candidate, run)) is not None]
    apart = {rate for rate in maps if rate and not any(map(partial(isclose, rate), rates))}
    return replace(
        one, score=as_score(score, metric), metric=metric,
        value=as_score(score, metric) if metric == LOSS else mean,
        peak_memory_gib=max((peak / 2**30 for peak in peaks), default=None),
        seconds_per_step=min(step_seconds, default=None),
        forgetting=_mean_forgetting(one.runs),
        rates=tuple(sorted(set(rates))), map_rates=tuple(sorted(apart)),
    )  # fmt: skip


def _map_rate(candidate: Candidate, run: ScoredRun) -> float | None:
    """The learning rate of the maps of a run; None if they have that of the other parameters."""
    rate = _learning_rate(run)
    recipe = run.result.recipe
    own = None if recipe is None else recipe.parts.get("lmam", {}).get("map_learning_rate")
    if rate is not None:
        if own is None and candidate.map_rate and candidate.default_rate:
            return candidate.map_rate / candidate.default_rate * rate
        if isinstance(own, str):
            return float(own.removesuffix("x")) * rate
    return float(own) if isinstance(own, int | float) else None


def _learning_rate(run: ScoredRun) -> float | None:
    """The learning rate of a run; None if its result does not say."""
    recipe = run.result.recipe
    rate = None if recipe is None else recipe.training.get("learning_rate")
    return float(rate) if isinstance(rate, int | float) else None


def _mean_forgetting(runs: Sequence[ScoredRun]) -> float | None:
    """How much the loss on a neutral text has grown, the mean over runs, in nats per token."""
    adapted, base = list[float](), list[float]()
    for run in runs:
        losses = run.result.forgetting
        if losses is not None and losses.adapted is not None:
            adapted.append(losses.adapted)
        if losses is not None and losses.base is not None:
            base.append(losses.base)
    if not adapted or not base:
        return None
    return float(np.mean(adapted) - np.mean(base))


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _tested(
    lines: Sequence[CandidateResult], decision: Decision | None, groups: Sequence[str] | None
) -> list[CandidateResult]:
    """The candidates that are tested, with a score for each row, or group, that is independent."""
    known = decision.scores.keys() - decision.untested if decision else ()
    found = [one for one in lines if one.label in known]
    if groups is None:
        return found
    return [replace(one, scores=by_group(one.scores, groups)) for one in found]


def _decided(
    results: Results,
    scored: Sequence[CandidateResult],
    baselines: Sequence[tuple[Baseline, Scores | None]],
    metric: str,
    margin: float | None,
) -> Decision | None:
    """Which candidate to take; None where scores are of one row, or of a part of the rows."""
    if results.units[0] < 2 or windows_overlap(metric) or results.rows_without_loss:
        return None
    rows, sign = len(results.rows), as_score(1.0, metric)
    asked = results.asked.margin if results.metric == results.own_metric else None
    known = {one.label: one for one in scored}
    ran = [known.get(c.label, c) for c in results.candidates if c.runs or c.diverged]
    return decide(
        {c.label: sign * np.vstack([c.scores.reshape(-1, rows),
                                    np.full((len(c.diverged), rows), np.nan)]) for c in ran},
        {c.label: _costs(c) for c in ran},
        asked if margin is None else margin,
        lower_is_better=lower_is_better(metric),
        groups=results.groups,
        baselines={one.name: sign * each for one, each in baselines if each is not None},
        seeds={c.label: (*(run.seed for run in c.runs), *c.diverged) for c in ran},
        unit=scale_of(metric, results.own_unit.name).behind.strip(),
    )  # fmt: skip


def _costs(one: CandidateResult) -> dict[str, float]:
    memory = None if one.peak_memory_gib is None else one.peak_memory_gib * 2**30
    given = {"parameters": one.trainable, "seconds": one.seconds_per_step, "bytes": memory}
    return {name: cost for name, cost in given.items() if cost is not None}


def _with_decision(one: CandidateResult, decision: Decision | None) -> CandidateResult:
    if decision is None or one.label not in decision.runs:
        return one
    low, high = decision.intervals.get(one.label, (None, None))
    return replace(
        one, low=low, high=high, expected_loss=decision.expected_loss.get(one.label),
        mark=decision.mark(one.label), letter=decision.letters.get(one.label, ""),
        p_best=decision.p_highest.get(one.label),
    )  # fmt: skip


def _baselines(results: Results, metric: str) -> list[tuple[Baseline, Scores | None]]:
    """Each score without training, with the scores of its rows; None if it has none."""
    found: list[tuple[Baseline, Scores | None]] = []
    by, scale = rows_metric(metric), scale_of(metric, results.own_unit.name)
    names = BASELINES | ({"commonest": "the mean of the right numbers"} if by == ERROR else {})
    for key, name in names.items():
        entry = results.baselines.get(key, Untrained(reason="it is not scored yet"))
        stored = entry.row_scores.get(by, [])
        # Rows whose response lies beyond max_length have no loss, in no run.
        by_row = np.array([as_score(one, by) for one in stored if one is not None], float)
        if len(by_row) == len(results.rows) > 0:
            each = by_row[None]
            each = each if results.groups is None else by_group(each, results.groups)
            share = scale is PERCENT
            ends = mean_score(each, share=share).interval() if each.size > 1 else ()
            low, high = sorted(as_score(end, by) for end in ends) or (None, None)
            score = as_score(float(by_row.mean()), by)
            text = None if entry.answer is None else answer_in_words(entry.answer)
            found.append((Baseline(name, score, low, high, text), by_row))
        else:
            reason = entry.reason or f"it has no {scale.title} on these rows"
            found.append((Baseline(name, reason=reason), None))
    return found


def _all_alike(lines: list[CandidateResult], scale: Scale, by_loss: str) -> str:
    """Says that free answers of all runs have the same score in each row; empty if they differ.

    If their losses differ, it names the command that writes the report ``by_loss``.
    """
    forms = {run.result.form for one in lines for run in one.runs}
    if len(lines) < 2 or rows_metric(lines[0].metric) == LOSS or not forms <= FREE:
        return ""
    if not has_no_spread(np.concatenate([one.scores for one in lines])):
        return ""
    losses = np.concatenate([one.losses for one in lines])
    differ = bool((np.ptp(losses, axis=0) > TINY).any())
    rest = f"their losses differ, `{by_loss}`" if differ else "their losses are equal too."
    metric, score = lines[0].metric.replace("_", " "), score_of(lines[0], scale)
    return f"{metric} is {score} for all of them: {rest}"


def _machines(planned: dict[str, Any], runs: Sequence[ScoredRun]) -> tuple[str, ...]:
    """One text for each kind of machine that ran a part."""
    texts = []
    for machine in filter(None, [run.result.hardware for run in runs] or [planned]):
        cpu, cores, memory = (machine.get(key, "?") for key in ("cpu", "cores", "memory_gib"))
        first = f"{machine['accelerator']}; " if machine.get("accelerator") else ""
        texts.append(f"{first}{cpu}, {cores} cores, {memory} GiB")
    return tuple(dict.fromkeys(texts))


def source(results: Results, name: str) -> str:
    """What a reader calls some held-out rows: their file, or the share of the file of all rows."""
    data = results.asked.recipe.get("data")
    if data and name.endswith("%"):
        return f"{name} of {file_names(data).removeprefix(BUILTIN)}"
    return Path(name).name


def _disagreements(results: Results, scored: list[CandidateResult]) -> list[Disagreement]:
    """The rows that divide the candidates most; none where rows are not right or wrong."""
    scored = [one for one in scored if one.runs]
    if not scored or not all(np.isin(c.scores, (RIGHT, WRONG)).all() for c in scored):
        return []
    right = np.array([c.scores.mean(axis=0) > (RIGHT + WRONG) / 2 for c in scored])
    divided = np.minimum(right.sum(axis=0), (~right).sum(axis=0))
    found = []
    for index in np.argsort(-divided, kind="stable")[:MOST_ROWS]:
        if not divided[index]:
            break
        name, number = row = results.rows[index]
        wins = right[:, index]
        better = tuple(c.label for c, one in zip(scored, wins, strict=True) if one)
        worse = tuple(c.label for c, one in zip(scored, wins, strict=True) if not one)
        predictions = [run.predictions[row] for c in scored for run in c.runs]
        stored = [prediction for prediction in predictions if prediction.text is not None]
        shown = (stored[-1].text, stored[-1].right) if stored else ()
        texts = map(answer_in_words, shown)
        found.append(Disagreement(source(results, name), number, better, worse, *texts))
    return found


def commands_of(folder: Path, best: CandidateResult, *, trusted: bool = True) -> dict[str, str]:
    """The commands to train a candidate again, and to use the run of its first seed.

    Of one that is not ``trusted``, as no method was shown to learn, only those to look at it.
    """
    run = best.first_run
    place, mine = folder / run.folder, f"my-{best.method}"
    # A file cannot allow remote code, so that the command has to.
    recipe = run.result.recipe
    allowed = ["--trust-remote-code"] if recipe is not None and recipe.trust_remote_code else []
    words: dict[str, list[Any]] = {}
    if trusted:
        words["train"] = ["train", place / "recipe.yaml", "--output", f"runs/{mine}", *allowed]
        words["export"] = ["export", place, mine, *allowed]
    if run.result.form in HEADED:
        words["predict"] = ["predict", place, "--text", "TEXT", *allowed]
    elif not trusted and run.result.form == "messages":
        words["chat"] = ["chat", place, *allowed]
    elif not trusted:
        words["generate"] = ["generate", place, "--prompt", "TEXT", *allowed]
    if trusted:
        words["serve"] = ["serve", place, *allowed]
    if not trains_base(place):
        words["explore"] = ["explore", place, "--text", "TEXT", *allowed]
    return {name: as_typed("lorada", *each) for name, each in words.items()}
