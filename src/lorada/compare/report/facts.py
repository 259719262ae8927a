"""What a comparison's results say of one candidate, and of the machines that ran it."""

from functools import partial
from math import isclose
from operator import itemgetter
from typing import Any

import numpy as np

from lorada.compare.report.read import ScoredCandidate, ScoredRun
from lorada.compare.report.summary import Search, TriedRate
from lorada.support.metric_names import LOSS, as_score, main_metric

POINT = ("choice", "map_factor", "rate")  # what differs between the trials of a search


def facts_of(candidate: ScoredCandidate, metric: str) -> dict[str, Any]:
    """The fields of a line that need no other candidate; ``metric`` is the main one."""
    runs, plan = candidate.runs, candidate.plan
    facts: dict[str, Any] = {
        "label": candidate.label, "method": candidate.method,
        "budget": ", ".join(candidate.budgets), "above": any(candidate.budgets.values()),
        "sizes": candidate.sizes, "trainable": plan.get("trainable"),
        "percent": plan.get("percent"), "mergeable": plan.get("mergeable"),
        "seeds": seeds_of(runs), "reason": plan.get("reason") or candidate.missing or None,
    }  # fmt: skip
    if not runs:
        return facts
    score = float(candidate.scores.mean())
    value = as_score(score, metric) if metric == LOSS else value_of(runs, metric)
    adapter, peak = (_numbers(runs, key) for key in ("adapter_bytes", "peak_memory_bytes"))
    adapted, base = (_numbers(runs, "forgetting", key) for key in ("adapted", "base"))
    rates = _numbers(runs, "recipe", "training", "learning_rate")
    maps = _numbers(runs, "recipe", "parts", "lmam", "map_learning_rate")
    maps = maps or [float(plan.get("map_rate") or 0.0)]
    apart = {one for one in maps if one and not any(map(partial(isclose, one), rates))}
    return facts | {
        "score": score, "metric": metric, "value": value,
        "adapter_mb": _mean(adapter, 1e6), "peak_memory_gib": max(peak) / 2**30 if peak else None,
        "seconds_per_step": candidate.seconds,
        "forgetting": float(np.mean(adapted) - np.mean(base)) if adapted and base else None,
        "rates": tuple(sorted(set(rates))), "map_rates": tuple(sorted(apart)),
    }  # fmt: skip


def _numbers(runs: list[ScoredRun], *keys: str) -> list[float]:
    """The numbers under these keys of the runs' results; runs without one are left out."""
    found = []
    for run in runs:
        value: Any = run.result
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            found.append(float(value))
    return found


def _mean(values: list[float], unit: float = 1.0) -> float | None:
    return float(np.mean(values)) / unit if values else None


def seeds_of(runs: list[ScoredRun]) -> tuple[int, ...]:
    """The seeds of runs, each once."""
    return tuple(sorted({run.seed for run in runs}))


def _metrics(runs: list[ScoredRun]) -> list[dict[str, Any]]:
    """The metrics of runs on the held-out rows, by the names of the rows."""
    names = dict.fromkeys(name for run in runs for name, _ in run.scores)
    found = [run.result["metrics"].get(name) for name in names for run in runs]
    return [each for each in found if each]


def main_metric_of(runs: list[ScoredRun]) -> str:
    """The name of the main metric; of several names of rows with slashes between."""
    return "/".join(dict.fromkeys(main_metric(each) for each in _metrics(runs)))


def value_of(runs: list[ScoredRun], metric: str) -> float | None:
    """The mean of a metric of all rows, over runs and names of rows; None if it is not stored."""
    values = [each.get(name) for name in metric.split("/") for each in _metrics(runs)]
    return _mean([float(value) for value in values if isinstance(value, int | float)])


def cut_answers(runs: list[ScoredRun]) -> tuple[int, int, str]:
    """How many of how many answers of runs were cut, and at how many tokens."""
    found = [each for each in _metrics(runs) if each.get("cut")]
    limits = dict.fromkeys(str(each.get("max_new_tokens")) for each in found)
    answers = sum(int(each["n"]) for each in _metrics(runs)) if found else 0
    return sum(int(each["cut"]) for each in found), answers, " or ".join(limits)


def unfound_classes(runs: list[ScoredRun]) -> list[str]:
    """What each run that never finds a class says of it."""
    return [str(each["unfound"]) for each in _metrics(runs) if each.get("unfound")]


def history_of(candidate: ScoredCandidate) -> list[tuple[int, float]]:
    """The training loss over steps: the mean over runs, at steps that all of them logged."""
    by_step: dict[int, list[float]] = {}
    for run in candidate.runs:
        for entry in run.result.get("history") or []:
            if isinstance(entry.get("loss"), int | float) and isinstance(entry.get("step"), int):
                by_step.setdefault(entry["step"], []).append(float(entry["loss"]))
    most = len(candidate.runs)
    return [(step, float(np.mean(v))) for step, v in sorted(by_step.items()) if len(v) == most]


def machines_of(plan: dict[str, Any], runs: list[ScoredRun]) -> tuple[str, ...]:
    """One text for each kind of machine that ran a part."""
    machines = [run.result.get("hardware") for run in runs] or [plan.get("hardware")]
    texts = []
    for machine in machines:
        if isinstance(machine, dict):
            cpu, cores, memory = (machine.get(key, "?") for key in ("cpu", "cores", "memory_gib"))
            text = f"{cpu}, {cores} cores, {memory} GiB"
            texts.append(
                f"{machine['accelerator']}; {text}" if machine.get("accelerator") else text
            )
    return tuple(dict.fromkeys(texts))


def version_notes(runs: list[ScoredRun]) -> list[str]:
    """A note for each package whose version differs between runs."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        versions = run.result.get("versions")
        for package, version in versions.items() if isinstance(versions, dict) else ():
            found.setdefault(str(package), {}).setdefault(str(version))
    return [
        f"runs used different versions of {package}: {', '.join(versions)}"
        for package, versions in found.items()
        if len(versions) > 1
    ]


def tried_rates(candidate: ScoredCandidate) -> list[TriedRate]:
    """The learning rates that a candidate's searches tried: of each, from the lowest on."""
    found: list[TriedRate] = []
    curves: dict[tuple[Any, ...], int] = {}
    for number, search in enumerate(candidate.searches):
        trials = sorted(_trials(search), key=itemgetter(*POINT))
        mine = [trial for trial in trials if trial["choice"] == search["choice"]]
        rates = [trial["rate"] for trial in mine if trial["map_factor"] == 1.0]
        factors = [trial["map_factor"] for trial in mine if trial["rate"] == search["rate"]]
        at_edge = search["rate"] in (rates[:1] + rates[-1:]) or (
            len(factors) > 1 and search["map_factor"] in (min(factors), max(factors))
        )
        for trial in trials:
            chosen = all(trial[key] == search[key] for key in POINT)
            curve = (number, trial["choice"], trial["map_factor"])
            found.append(TriedRate(
                rate=float(trial["rate"]), loss=trial.get("loss"),
                stopped=bool(trial.get("pruned")), chosen=chosen, at_edge=chosen and at_edge,
                search=curves.setdefault(curve, len(curves)), map_rate=trial.get("map_rate"),
            ))  # fmt: skip
    return found


def search_of(candidates: list[ScoredCandidate], each_seed: bool) -> Search:
    """What the search for learning rates cost."""
    trials = [
        trial for candidate in candidates for search in candidate.searches
        for trial in _trials(search)
    ]  # fmt: skip
    return Search(
        each_seed=each_seed,
        seconds=sum(float(trial.get("seconds") or 0.0) for trial in trials),
        trials=len(trials),
        pruned=sum(bool(trial.get("pruned")) for trial in trials),
        diverged=sum(trial.get("loss") is None for trial in trials),
    )


def _trials(search: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials of a search that are whole."""
    return [
        trial for trial in search["trials"]
        if isinstance(trial, dict) and isinstance(trial.get("rate"), int | float)
    ]  # fmt: skip
