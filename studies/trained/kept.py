"""What is kept of a study's comparisons: the score and the loss of every held-out row.

With it every test of the pages can be repeated, without the runs themselves. Comparisons are read
by the code that made them: a commit that a page names (``git worktree``).
"""

import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import numpy as np
from marked import write_part as write_part

from lorada.compare.read_results import CandidateResult, read_comparison
from lorada.compare.report.candidate_lines import measure
from lorada.decision.statistics import holm, paired_p
from lorada.support.files import atomic_path

DOCS = Path(__file__).parents[2] / "docs"


class Measured(NamedTuple):
    """A method on some rows.

    Attributes:
        scores: seeds × rows, in percent.
        losses: of the right answers, seeds × rows, in nats.
        rates: the learning rate that the search has found, or the search of each seed.
        parameters: how many are trained; the task head is not counted.
        seconds: of a step; None where it was not measured.
        memory: the largest peak of a run's process, in bytes; None where it is not known.
        map_rates: the same of the map, where its rate was searched.
    """

    scores: np.ndarray
    losses: np.ndarray
    rates: list[float]
    parameters: int = 0
    seconds: float | None = None
    memory: int | None = None
    map_rates: tuple[float, ...] = ()


def corrected(pairs: Sequence[tuple[Measured, Measured]]) -> tuple[list[float], list[float]]:
    """P of some tests with Holm's correction for their number: of scores, and of losses."""
    by_score = holm([paired_p(one.scores, other.scores) for one, other in pairs])
    by_loss = holm([paired_p(one.losses, other.losses) for one, other in pairs])
    return by_score, by_loss


Found = dict[str, dict[str, Measured]]  # a name of rows → method as run.py names it


def finished(comparison: Path) -> Iterator[CandidateResult]:
    """The candidates of a comparison that have every run; none before it has a plan."""
    if (comparison / "plan.json").is_file():
        for each in read_comparison(comparison).candidates:
            if each.runs and not each.reason:
                yield each


def read(study: Path, wanted: dict[str, str]) -> Found:
    """The candidates that have every run.

    Args:
        study: the folder of ``run.py``.
        wanted: each comparison to read → the name that its rows get.
    """
    found: Found = {}
    for name, rows in wanted.items():
        for each in finished(study / name):
            found.setdefault(rows, {})[each.method] = _measured(each)
    return found


def _measured(each: CandidateResult) -> Measured:
    peaks = [run.result.peak_memory_bytes for run in each.runs]
    seconds = measure(each, metric="").seconds_per_step
    rates = [] if each.search is None else [each.search.rate]
    map_rate = None if each.search is None else each.search.map_rate
    return Measured(
        each.scores, each.losses, rates,
        each.trainable, seconds, max(filter(None, peaks), default=None),
        (map_rate,) if map_rate else (),
    )  # fmt: skip


def keep(found: Found, path: Path) -> None:
    """Write it, losses to three digits; what is kept there and was not found again stays."""
    whole = kept(path)
    for rows, methods in found.items():
        whole.setdefault(rows, {}).update(methods)
    plain = {
        rows: {
            method: {
                **each._asdict(),
                "scores": each.scores.tolist(),
                "losses": each.losses.round(3).tolist(),
            }
            for method, each in methods.items()
        }
        for rows, methods in whole.items()
    }
    with atomic_path(path) as fresh:
        fresh.write_bytes(gzip.compress(json.dumps(plain).encode(), mtime=0))


def kept(path: Path) -> Found:
    """What ``keep`` has written; nothing before the first run."""
    if not path.is_file():
        return {}
    plain: dict[str, dict[str, dict[str, Any]]] = json.loads(gzip.decompress(path.read_bytes()))
    return {
        rows: {
            method: Measured(
                **{**one, "scores": np.array(one["scores"]), "losses": np.array(one["losses"])}
            )
            for method, one in methods.items()
        }
        for rows, methods in plain.items()
    }
