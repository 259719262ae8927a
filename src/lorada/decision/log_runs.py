"""Which method and which seed the logs of other tools are of."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorada.decision.log_records import Log, LogRow

ONLY_SEED = re.compile(r"(?:seed|run)?[-_=]?(\d+)", re.IGNORECASE)  # 3, seed3, run-3
METHOD_AND_SEED = re.compile(r"(.+?)[-_](?:seed|run)?[-_=]?(\d+)", re.IGNORECASE)  # lora-3
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
    """The method and the seed that each log is of: by its folders, its model, or by both.

    A run is named by its folders below the one that is read, ``METHOD-SEED``, ``METHOD/SEED`` or
    ``SEED/METHOD``. Where a folder has several models the method is the name of the model. A number
    at its end is a seed if it is called so, or if several methods have the same numbers.

    Three namings are tried, the plainest first: by folders, by models, by both. One is taken if no
    run gets answers to the same task from two sources, which would merge two models into one run.
    """
    folders = [log.folders for log in logs]
    models = [log.model for log in logs]
    by_folder = _split_names(folders, METHOD_AND_SEED)
    by_model = _split_names(models, METHOD_AND_SEED)
    if not _have_same_seeds(by_model):
        by_model = _split_names(models, MODEL_AND_SEED)

    # By the folders alone, if these name a method and keep different models apart.
    runs = [RunName(name.method, name.seed or FIRST_SEED) for name in by_folder]
    if all(run.method for run in runs) and not _merge_sources(runs, logs, models):
        return runs

    # By the model, if no two folders have the same one.
    runs = []
    for folder, model in zip(by_folder, by_model, strict=True):
        method = model.method or folder.method or NAMELESS
        runs.append(RunName(method, folder.seed or model.seed or FIRST_SEED))
    if not _merge_sources(runs, logs, models) and not _merge_sources(runs, logs, folders):
        return runs

    # By both: several models in each folder, as of two prompts with two models.
    both_names = []
    for folder, model, run in zip(by_folder, by_model, runs, strict=True):
        method = f"{folder.method} {model.method}".strip()
        both_names.append(RunName(method or NAMELESS, run.seed))
    return both_names


def _have_same_seeds(names: Sequence[RunName]) -> bool:
    """Whether there are several methods, and all have the same two seeds or more."""
    seeds_of_methods: dict[str, set[str]] = {}
    for name in names:
        if name.seed:
            seeds_of_methods.setdefault(name.method, set()).add(name.seed)
    if len(seeds_of_methods) < 2:
        return False
    first_seeds, *other_seeds = seeds_of_methods.values()
    return len(first_seeds) > 1 and all(seeds == first_seeds for seeds in other_seeds)


def _merge_sources(
    runs: Sequence[RunName], logs: Sequence[Log], sources: Sequence[tuple[str, ...]]
) -> bool:
    """Whether these names give one run the answers to a task of two sources, as of two models.

    Args:
        runs: the name of each log's run.
        logs: all of them.
        sources: of each log, what one run has only one of for a task: its model, or its folders.
    """
    source_of_task: dict[tuple[RunName, str], tuple[str, ...]] = {}
    for run, log, source in zip(runs, logs, sources, strict=True):
        if source_of_task.setdefault((run, log.task), source) != source:
            return True
    return False


def _split_names(
    names: Sequence[tuple[str, ...]], method_and_seed: re.Pattern[str]
) -> list[RunName]:
    """Split each name into method and seed, after dropping the parts that all names share.

    Args:
        names: in parts, each of a folder or of a model's path.
        method_and_seed: what a part with both of them looks like.
    """
    names = [_without_checkpoint(name) for name in names]
    if len(set(names)) == 1:  # all parts are shared, and the last one tells most
        return [_split_name(name[-1:], method_and_seed) for name in names]
    backwards = _without_shared_start([name[::-1] for name in names])
    names = _without_shared_start([name[::-1] for name in backwards])
    return [_split_name(parts, method_and_seed) for parts in names]


def _without_checkpoint(parts: tuple[str, ...]) -> tuple[str, ...]:
    """A name without ``checkpoint-500``, whose number is one of steps and no seed."""
    return tuple(part for part in parts if not CHECKPOINT.fullmatch(part))


def _without_shared_start(names: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Names without the parts that all begin with, as long as each still names a method.

    ``results/lora/1`` and ``results/lora/2`` share ``results/lora``, but only ``results`` is
    dropped: without ``lora`` nothing but seeds would be left to name a method.
    """
    while len({name[:1] for name in names}) == 1:
        shorter = [name[1:] for name in names]
        if not all(_names_a_method(name) for name in shorter):
            break
        names = shorter
    return names


def _names_a_method(parts: tuple[str, ...]) -> bool:
    """Whether any part of a name is more than a seed: ``lora/3`` names a method, ``3`` does not."""
    return any(not ONLY_SEED.fullmatch(part) for part in parts)


def _split_name(parts: tuple[str, ...], method_and_seed: re.Pattern[str]) -> RunName:
    """Split a name into method and seed; without a seed, that is an empty text.

    ``lora/seed3``, ``3/lora`` and ``lora-3`` are lora with seed 3; ``1/lora-3`` is also lora-3 with
    seed 1, as a part that is a seed alone counts first.
    """
    seeds, parts_of_method = [], []
    for part in parts:
        match = ONLY_SEED.fullmatch(part)
        if match:
            seeds.append(match[1])
        else:
            parts_of_method.append(part)
    if len(seeds) == 1:  # a part of its own: lora/3 or 3/lora
        return RunName("/".join(parts_of_method), seeds[0])

    # No part is a seed alone, or several are (``1/2``), which leaves open which is meant. Then the
    # last part may still end with one: lora-3.
    match = method_and_seed.fullmatch(parts[-1]) if parts else None
    if match is None:
        return RunName("/".join(parts), "")
    return RunName("/".join([*parts[:-1], match[1]]), match[2])
