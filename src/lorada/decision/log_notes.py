"""Says in sentences what was read from logs, so that a user sees how they were understood."""

from collections import defaultdict
from collections.abc import Sequence

from lorada.decision.log_records import INSPECT, LM_EVAL, PROMPTFOO, Log
from lorada.decision.log_runs import Run
from lorada.support.in_words import counted

RUNS_COME_FROM = {
    LM_EVAL: "Runs of one method with several seeds are read from folders METHOD-SEED",
    INSPECT: "Runs of one method are read from folders METHOD-SEED, or come from --epochs",
    PROMPTFOO: "Runs of one method are read from files METHOD-SEED.json, or come from --repeat",
}
MOST_TASKS = 3  # in a line
MOST_ROWS = 5


def summary_of_logs(runs: Sequence[Run], metric: str) -> str:
    """The metric, the tasks and the runs, so that a user sees how folders were understood."""
    # An ordered set of each method: a seed has a run for each task, and is to be named once.
    seeds: dict[str, dict[str, None]] = defaultdict(dict)
    for run in runs:
        seeds[run.name.method][run.name.seed] = None
    has_seeds = any(len(seeds_of_method) > 1 for seeds_of_method in seeds.values())
    methods = []
    for method, seeds_of_method in seeds.items():
        if not has_seeds:  # one run each, whose number says nothing
            methods.append(method)
        elif len(seeds_of_method) == 1:
            methods.append(f"{method} (seed {next(iter(seeds_of_method))})")
        else:
            methods.append(f"{method} (seeds {', '.join(seeds_of_method)})")
    scored = metric
    tasks = list(dict.fromkeys(run.log.task for run in runs if run.log.task))
    if tasks:  # promptfoo has none
        scored += f" of {_listed(tasks, MOST_TASKS)}"
    return f"{scored}, from logs of {runs[0].log.tool}: {', '.join(methods)}"


def left_out(logs: Sequence[Log], metric: str) -> list[str]:
    """A sentence on the tasks that do not have the metric."""
    with_metric = {log.task for log in logs if metric in log.metrics}
    tasks = list(dict.fromkeys(log.task for log in logs if log.task not in with_metric))
    if not tasks:
        return []
    return [f"Tasks without {metric} are left out: {_listed(tasks, MOST_TASKS)}"]


def on_repeats(runs: Sequence[Run], *, repeats_are_runs: bool) -> list[str]:
    """A sentence on several answers of a model to a row, or on runs where there are none."""
    if repeats_are_runs:
        return ["Runs are answers drawn again from one model, and say nothing of another training"]
    if any(row.repeat for run in runs for row in run.rows):
        return ["Of several answers of a model to a row the mean is taken"]
    methods = {run.name.method for run in runs}
    if len({run.name for run in runs}) == len(methods) > 1:
        return [RUNS_COME_FROM[runs[0].log.tool]]
    return []


def rows_wrong_in_all(runs: Sequence[Run], metric: str) -> list[str]:
    """A sentence on the rows that no run gets right, where scores are right or wrong."""
    scores_of_rows: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in runs:
        for row in run.rows:
            scores_of_rows[run.log.task, row.row].append(row.scores[metric])
    number_of_runs = max(map(len, scores_of_rows.values()))
    if number_of_runs == 1:  # says no more than its score
        return []
    if not all(set(scores) <= {0.0, 1.0} for scores in scores_of_rows.values()):
        return []
    wrong = [place for place, scores in scores_of_rows.items() if not any(scores)]
    if not wrong:
        return []
    names = [row for _, row in wrong]
    if len({task for task, _ in scores_of_rows}) > 1:
        names = [f"{task} {row}" for task, row in wrong]
    are = "is" if len(wrong) == 1 else "are"
    return [
        f"{len(wrong):,} of {counted(len(scores_of_rows), 'row')} {are} wrong in all "
        f"{number_of_runs} runs: {_listed(names, MOST_ROWS)}"
    ]


def _listed(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    first = ", ".join(names[:most])
    if len(names) <= most:
        return first
    return f"{first} and {len(names) - most:,} more"
