"""What is true of a comparison: scores, tests, the decision, costs; all that its report shows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from lorada.compare.curve import Curve, read_curve
from lorada.compare.read_results import CandidateResult, Results, ScoredRun
from lorada.compare.report.baseline_scores import Baseline, ScoredBaseline, scored_baselines
from lorada.compare.report.candidate_lines import GIB, CandidateLine, decided_of, measure
from lorada.compare.report.next_commands import by_loss_command, commands_of, resume_command
from lorada.compare.report.next_steps import NextStep, curve_sentence, next_steps
from lorada.compare.report.retention_summary import RetentionSummary, summarize_retention
from lorada.compare.report.row_disagreements import shown_name
from lorada.compare.report.score_scale import Scale, scale_of, windows_overlap
from lorada.compare.report.shown_rows import ShownRows, shown_rows
from lorada.compare.report.verdict_and_limits import beside_the_loss, limits, verdict
from lorada.compare.stored_plan import ComparisonPlan
from lorada.decision.decide import decide
from lorada.decision.decision_record import Decision
from lorada.decision.run_variances import TINY, Scores
from lorada.decision.score_format import ScoreFormat
from lorada.decision.statistics import by_group, has_no_spread
from lorada.support.metric_names import LOSS, as_score, lower_is_better, main_metric, rows_metric

FREE = {"prompt", "messages"}  # forms of rows that are answered with a free text


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
    rows: int = 0  # how many held-out rows were scored
    seeds: tuple[int, ...] = ()  # of the final runs
    metric: str = ""  # the main metric
    own_unit: str = ""  # of a user's function: ``%`` if its values are right or wrong, or shares
    best: str = ""  # label of the candidate to take; empty if nothing is scored
    decision: Decision | None = None  # None where nothing can be decided
    # One for each candidate, a line of the table: the best score first, those without one last.
    lines: tuple[CandidateLine, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    # What methods gain, and what they lose elsewhere.
    retention: RetentionSummary = field(default_factory=RetentionSummary)
    shown_rows: ShownRows = field(default_factory=ShownRows)
    commands: dict[str, str] = field(default_factory=dict)  # what for → shell command
    hardware: tuple[str, ...] = ()  # one text for each kind of machine that ran a part
    versions: dict[str, str] = field(default_factory=dict)  # package → version
    procedure: Procedure | None = None
    curve: Curve | None = None  # the pick after training on fewer rows, if that was asked for
    next_steps: tuple[NextStep, ...] = ()  # what could be done, where the curve is measured

    @property
    def scored(self) -> list[CandidateLine]:
        """The candidates that have a score, the best first."""
        return [line for line in self.lines if line.score is not None]

    @property
    def scale(self) -> Scale:
        """How its scores are called."""
        return scale_of(self.metric, self.own_unit)

    @property
    def score_format(self) -> ScoreFormat:
        """How its scores are written: as the sentence of the decision writes them."""
        return self.decision.score_format if self.decision else self.scale.score_format

    @property
    def margin(self) -> float | None:
        """What a cheaper candidate may cost, in the unit of the metric."""
        return self.decision.margin if self.decision else None

    def plain(self) -> dict[str, Any]:
        """What ``report.json`` holds.

        Of the decision it has what concerns all candidates; the rest is in their lines.
        """
        decision, rows = self.decision, self.shown_rows.for_json()
        return {
            "verdict": self.verdict,
            "sentences": self.sentences,
            "model": self.model,
            "task": self.task,
            "rows": self.rows,
            "seeds": self.seeds,
            "metric": self.metric,
            "own_unit": self.own_unit,
            "best": self.best,
            "expected_score": decision.expected_score if decision else None,
            "expected_interval": decision.expected_interval if decision else None,
            "p_best": decision.p_best if decision else None,
            "loss_after_more_runs": decision.loss_after_more_runs if decision else None,
            "gain": asdict(decision.gain) if decision and decision.gain else None,
            "lines": [line.plain() for line in self.lines],
            "baselines": [asdict(baseline) for baseline in self.baselines],
            "margin": self.margin,
            "retention": self.retention.plain(),
            "wrong_rows": [asdict(row) for row in rows.wrong],
            "unstable_rows": [asdict(row) for row in rows.unstable],
            "disagreements": [asdict(row) for row in rows.divided],
            "commands": self.commands,
            "hardware": self.hardware,
            "versions": self.versions,
            "procedure": None if self.procedure is None else asdict(self.procedure),
            "curve": None if self.curve is None else asdict(self.curve),
            "next_steps": [asdict(step) for step in self.next_steps],
        }


def summarize(
    results: Results, margin: float | None = None, with_text: bool | None = None
) -> Summary:
    """Summarize a comparison, finished or not.

    Args:
        results: the comparison.
        margin: that of ``write_report``.
        with_text: where texts of rows are shown, as in ``write_report``; None as the comparison
            was asked to.

    Raises:
        ValueError: for a margin that ``decide`` refuses.
    """
    metric = results.metric or _main_metrics(results)
    ran = sorted(
        (candidate for candidate in results.candidates if candidate.runs),
        key=lambda candidate: float(candidate.scores.mean()),
        reverse=True,
    )
    measured = [
        CandidateLine(candidate, measure(candidate, metric, results.own_unit.factor))
        for candidate in ran
    ]
    baselines = scored_baselines(results, metric)
    # A first candidate would win against nothing; its scores are shown without a decision.
    decision = None
    if not _first_is_alone(results):
        decision = _decide(results, measured, baselines, metric, margin)
    scored = [replace(line, decided=decided_of(line.label, decision)) for line in measured]
    best = _best(results, scored, decision)
    tested = _tested(ran, decision, results.groups)
    retention = summarize_retention(
        results, ran, best.label if best else "", baselines, scale_of(metric, results.own_unit.name)
    )
    summary = Summary(
        verdict=_verdict(results, scored, decision, best),
        sentences=(*retention.sentences, *limits(results, scored, decision, tested)),
        model=str(results.asked.recipe.get("model", "")),
        task=", ".join(shown_name(results, name) for name in results.plan.held_out),
        rows=len(results.rows),
        seeds=_seeds(results),
        metric=metric,
        own_unit=results.own_unit.name,
        best=best.label if best else "",
        decision=decision,
        lines=(*scored, *_lines_without_runs(results, decision)),
        baselines=tuple(baseline.shown for baseline in baselines),
        retention=retention,
        shown_rows=shown_rows(
            results, ran, results.asked.with_text if with_text is None else with_text
        ),
        commands=_commands(results, scored, decision, best),
        hardware=_machines(results.plan.hardware, [run for one in ran for run in one.runs]),
        versions=results.plan.versions,
        procedure=_procedure(results.plan),
    )
    curve = read_curve(results, summary.best, metric)
    return summary if curve is None else _with_curve(summary, curve)


def _with_curve(summary: Summary, curve: Curve) -> Summary:
    """The summary with what more training rows have brought, which is said first."""
    score_format = summary.score_format
    return replace(
        summary,
        sentences=(curve_sentence(curve, score_format), *summary.sentences),
        curve=curve,
        next_steps=tuple(next_steps(curve, summary.decision, score_format)),
    )


def _main_metrics(results: Results) -> str:
    """The main metric; of several names of rows each, with slashes between."""
    names = []
    for candidate in results.candidates:
        if candidate.runs:
            names += [main_metric(metrics.scores) for metrics in candidate.metrics]
    return "/".join(dict.fromkeys(names))


def _first_is_alone(results: Results) -> bool:
    """Whether one candidate has runs while others wait: it has nothing to be better than yet."""
    without_runs = [candidate for candidate in results.candidates if not candidate.runs]
    if len(results.candidates) - len(without_runs) != 1:
        return False
    return any(candidate.is_unfinished or not candidate.reason for candidate in without_runs)


def _procedure(plan: ComparisonPlan) -> Procedure:
    return Procedure(plan.steps, plan.batch, plan.train.rows, plan.dev_rows)


def _seeds(results: Results) -> tuple[int, ...]:
    """The seeds of the runs; where runs may be fewer than was asked for, of those that were run."""
    run_seeds = sorted({run.seed for one in results.candidates for run in one.runs})
    if run_seeds and results.asked.may_leave_runs:
        return tuple(run_seeds)
    return tuple(results.asked.seeds)


def _decide(
    results: Results,
    lines: Sequence[CandidateLine],
    baselines: Sequence[ScoredBaseline],
    metric: str,
    margin: float | None,
) -> Decision | None:
    """Which candidate to take; None where scores are of one row, or of a part of the rows."""
    independent_rows, _ = results.units
    if independent_rows < 2:
        return None
    # Overlapping windows are no independent rows, and without some losses the mean is of a part.
    if windows_overlap(metric) or results.rows_without_loss:
        return None
    if margin is None and results.metric == results.own_metric:
        margin = results.asked.margin  # which is in the unit of that metric
    line_of = {line.label: line for line in lines}
    scores, costs, seeds = {}, {}, {}
    for candidate in results.candidates:
        if not candidate.runs and not candidate.diverged:
            continue
        scores[candidate.label] = _scores_as_shown(results, candidate, metric)
        seeds[candidate.label] = (*(run.seed for run in candidate.runs), *candidate.diverged)
        # Where all runs diverged, none has measured a cost, and the size alone is known.
        costs[candidate.label] = _costs(line_of.get(candidate.label, CandidateLine(candidate)))
    return decide(
        scores,
        costs,
        margin,
        lower_is_better=lower_is_better(metric),
        groups=results.groups,
        baselines=_tables(baselines, metric, are_alternatives=False),
        alternatives=_tables(baselines, metric, are_alternatives=True),
        seeds=seeds,
        unit=scale_of(metric, results.own_unit.name).unit_to_decide,
    )


def _tables(
    baselines: Sequence[ScoredBaseline], metric: str, *, are_alternatives: bool
) -> dict[str, Scores]:
    """The scores of baselines that may be taken instead of a training, or of the others."""
    tables = {}
    for baseline in baselines:
        if baseline.row_scores is not None and baseline.is_alternative == are_alternatives:
            tables[baseline.shown.name] = as_score(1.0, metric) * baseline.row_scores
    return tables


def _scores_as_shown(results: Results, candidate: CandidateResult, metric: str) -> Scores:
    """Scores as users know them, of all runs: a run that diverged has none."""
    rows = len(results.rows)
    of_diverged = np.full((len(candidate.diverged), rows), np.nan)
    scores = np.vstack([candidate.scores.reshape(-1, rows), of_diverged])
    shown: Scores = as_score(1.0, metric) * scores
    return shown


def _costs(line: CandidateLine) -> dict[str, float]:
    """What a candidate costs, as far as it is known."""
    measured, costs = line.measured, dict[str, float]()
    if line.result.trainable is not None:
        costs["parameters"] = line.result.trainable
    if measured.seconds_per_step is not None:
        costs["seconds"] = measured.seconds_per_step
    if measured.peak_memory_gib is not None:
        costs["bytes"] = measured.peak_memory_gib * GIB
    return costs


def _best(
    results: Results, scored: Sequence[CandidateLine], decision: Decision | None
) -> CandidateLine | None:
    """The candidate to take; of scores that cannot be tested the highest one."""
    if not scored or _first_is_alone(results) or results.rows_without_loss:
        return None
    if decision is None:
        return scored[0]
    return next((line for line in scored if line.label == decision.pick), None)


def _tested(
    ran: Sequence[CandidateResult], decision: Decision | None, groups: Sequence[str] | None
) -> list[CandidateResult]:
    """The candidates that are tested, with a score for each row, or group, that is independent."""
    if decision is None:
        return []
    names = decision.scores.keys() - decision.untested
    tested = [candidate for candidate in ran if candidate.label in names]
    if groups is None:
        return tested
    return [replace(one, scores=by_group(one.scores, groups)) for one in tested]


def _lines_without_runs(results: Results, decision: Decision | None) -> list[CandidateLine]:
    lines = []
    for candidate in results.candidates:
        if not candidate.runs:
            decided = decided_of(candidate.label, decision)
            lines.append(CandidateLine(candidate, decided=decided))
    return lines


def _verdict(
    results: Results,
    scored: Sequence[CandidateLine],
    decision: Decision | None,
    best: CandidateLine | None,
) -> str:
    """The result in a few sentences, with what the decision leaves out."""
    top = scored[0] if scored and not _first_is_alone(results) else None
    sentence = verdict(decision, top, results)
    beside = "" if decision is None else beside_the_loss(scored)
    if beside:
        sentence = f"{sentence} {beside}"
    alike = _all_alike(results, scored)
    if not alike:
        return sentence
    return f"{sentence} Yet {alike}" if best else alike


def _all_alike(results: Results, scored: Sequence[CandidateLine]) -> str:
    """Says that free answers of all runs have the same score in each row; empty if they differ.

    If their losses differ, it names the command that writes the report by the loss.
    """
    if len(scored) < 2 or rows_metric(scored[0].measured.metric) == LOSS:
        return ""
    forms = {run.result.form for line in scored for run in line.result.runs}
    if not forms <= FREE:
        return ""
    if not has_no_spread(np.concatenate([line.result.scores for line in scored])):
        return ""
    losses = np.concatenate([line.result.losses for line in scored])
    losses_differ = bool((np.ptp(losses, axis=0) > TINY).any())
    their_losses = "their losses are equal too."
    if losses_differ:
        their_losses = f"their losses differ, `{by_loss_command(results.folder)}`"
    metric = scored[0].measured.metric
    score = scale_of(metric, results.own_unit.name).score(scored[0].score or 0.0)
    return f"{metric.replace('_', ' ')} is {score} for all of them: {their_losses}"


def _commands(
    results: Results,
    scored: Sequence[CandidateLine],
    decision: Decision | None,
    best: CandidateLine | None,
) -> dict[str, str]:
    """The commands to type next, the most urgent one first: what for → command."""
    commands: dict[str, str] = {}
    if results.runs_left or any(candidate.is_unfinished for candidate in results.candidates):
        commands["go on with it"] = resume_command(results.folder)
    if _all_alike(results, scored):
        commands["write the report by the loss"] = by_loss_command(results.folder)
    if best is not None:
        # What is not shown to be worth its training is looked at first, and not trained again.
        gain = None if decision is None else decision.gain
        is_worth_it = gain is None or gain.is_shown
        commands |= commands_of(results.folder, best.result, trusted=is_worth_it)
    elif decision is not None and scored:  # to look at what was not enough
        commands |= commands_of(results.folder, scored[0].result, trusted=False)
    return commands


def _machines(planned: dict[str, Any], runs: Sequence[ScoredRun]) -> tuple[str, ...]:
    """A text for each kind of machine that ran a part: its accelerator, processor and memory.

    Before any run is finished it is the machine that made the plan (``planned``).
    """
    machines: list[dict[str, Any] | None] = [run.result.hardware for run in runs]
    texts = []
    for machine in machines or [planned]:
        if not machine:
            continue
        cpu, cores, memory = (machine.get(key, "?") for key in ("cpu", "cores", "memory_gib"))
        accelerator = f"{machine['accelerator']}; " if machine.get("accelerator") else ""
        texts.append(f"{accelerator}{cpu}, {cores} cores, {memory} GiB")
    return tuple(dict.fromkeys(texts))
