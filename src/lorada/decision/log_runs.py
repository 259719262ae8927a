"""Which method and which seed the logs of other tools are of."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorada.decision.log_records import Log, LogRow

ONLY_SEED = re.compile(r"(?:seed|run)?[-_=]?(\d+)", re.IGNORECASE)
METHOD_AND_SEED = re.compile(r"(.+?)[-_](?:seed|run)?[-_=]?(\d+)", re.IGNORECASE)
# A model may have a number of its own: gpt-4 is no run of gpt with seed 4.
MODEL_AND_SEED = re.compile(r"(.+?)[-_]?seed[-_=]?(\d+)", re.IGNORECASE)
CHECKPOINT = re.compile(r"checkpoint-\d+")
FIRST_SEED = "1"
NAMELESS = "model"


@dataclass(frozen=True)
class RunName:
    """A run of a method; parts that a log does not tell are empty."""

    method: str
    seed: str


@dataclass(frozen=True)
class Run:
    """A log, the run that it is of, and its rows that have the metric."""

    name: RunName
    log: Log
    rows: tuple[LogRow, ...]

    @property
    def shown(self) -> str:
        """The run in an error."""
        return f"{self.name.method}, seed {self.name.seed}"


def name_runs(logs: Sequence[Log]) -> list[RunName]:
    """The run that each log is of.

    A run is named by its folders below the one that is read, ``METHOD-SEED``, ``METHOD/SEED`` or
    ``SEED/METHOD``. Where a folder has several models the method is the name of the model. A number
    at its end is a seed if it is called so, or if several methods have the same numbers.
    """
    folders, models = [log.folders for log in logs], [log.model for log in logs]
    by_folder = _names_in(folders, METHOD_AND_SEED)
    by_model = _names_in(models, METHOD_AND_SEED)
    if not _have_same_seeds(by_model):
        by_model = _names_in(models, MODEL_AND_SEED)

    runs = [RunName(name.method, name.seed or FIRST_SEED) for name in by_folder]
    if all(run.method for run in runs) and not _mix(runs, logs, models):
        return runs

    runs = []
    for folder, model in zip(by_folder, by_model, strict=True):
        method = model.method or folder.method or NAMELESS
        runs.append(RunName(method, folder.seed or model.seed or FIRST_SEED))
    if not _mix(runs, logs, models) and not _mix(runs, logs, folders):
        return runs

    # Several models in each folder, as of two prompts with two models.
    both_names = []
    for folder, model, run in zip(by_folder, by_model, runs, strict=True):
        method = f"{folder.method} {model.method}".strip()
        both_names.append(RunName(method or NAMELESS, run.seed))
    return both_names


def _have_same_seeds(names: Sequence[RunName]) -> bool:
    """Whether several methods have the same seeds, two or more."""
    seeds: dict[str, set[str]] = {}
    for name in names:
        if name.seed:
            seeds.setdefault(name.method, set()).add(name.seed)
    different = {frozenset(of_method) for of_method in seeds.values()}
    return len(seeds) > 1 and len(different) == 1 and len(different.pop()) > 1


def _mix(runs: Sequence[RunName], logs: Sequence[Log], sources: Sequence[tuple[str, ...]]) -> bool:
    """Whether a run would have answers to one task from two sources, such as two models."""
    source_of_task: dict[tuple[RunName, str], tuple[str, ...]] = {}
    for run, log, source in zip(runs, logs, sources, strict=True):
        if source_of_task.setdefault((run, log.task), source) != source:
            return True
    return False


def _names_in(names: Sequence[tuple[str, ...]], method_and_seed: re.Pattern[str]) -> list[RunName]:
    """Of each name in parts the method and the seed, without parts that all names share."""
    names = [tuple(part for part in name if not CHECKPOINT.fullmatch(part)) for name in names]
    if len(set(names)) == 1:  # all parts are shared
        return [_name_in(name[-1:], method_and_seed) for name in names]
    backwards = _without_shared_start([name[::-1] for name in names])
    names = _without_shared_start([name[::-1] for name in backwards])
    return [_name_in(parts, method_and_seed) for parts in names]


def _without_shared_start(names: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Names without the parts that all begin with, as long as each still names a method."""
    while len({name[:1] for name in names}) == 1:
        shorter = [name[1:] for name in names]
        if not all(any(not ONLY_SEED.fullmatch(part) for part in name) for name in shorter):
            break
        names = shorter
    return names


def _name_in(parts: tuple[str, ...], method_and_seed: re.Pattern[str]) -> RunName:
    """The method and the seed in the parts of a name."""
    seeds = [match[1] for match in map(ONLY_SEED.fullmatch, parts) if match]
    if len(seeds) == 1:
        method = "/".join(part for part in parts if not ONLY_SEED.fullmatch(part))
        return RunName(method, seeds[0])
    match = method_and_seed.fullmatch(parts[-1]) if parts else None
    if match is None:
        return RunName("/".join(parts), "")
    return RunName("/".join([*parts[:-1], match[1]]), match[2])
