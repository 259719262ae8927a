"""Write the results of the second study into docs/study.md, with the tests of H5 to H7.

    python benchmarks/study/second.py study    # reads the comparisons, keeps what the tests need
    python benchmarks/study/second.py          # the page again, from what is kept

``study`` is the folder of ``run.py``. Kept are the score and the loss of every held-out row with
every seed, in docs/results/study2.json.gz; candidates without all of their runs are left out.
"""

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from page import DOCS, END
from run import (
    COMPARISONS,
    DORA,
    DORA_4,
    HEAD,
    LEFT,
    LEFT_ON_DORA,
    LEFT_ON_LORA,
    LORA,
    LORA_4,
    PRINTED,
    PRINTED_ON_LORA,
)

from lorada.report.comparison.read import read_comparison
from lorada.report.comparison.statistics import ALPHA, detectable, holm, interval, paired_p
from lorada.support.files import atomic_path, write_atomic

KEPT = DOCS / "results" / "study2.json.gz"
BEGIN = "<!-- results: benchmarks/study/second.py -->"
NAMES = {
    HEAD: "head alone", LORA: "LoRA r 1", LORA_4: "LoRA r 4", DORA: "DoRA r 1", DORA_4: "DoRA r 4",
    PRINTED: "map, today's start", LEFT: "map, left start",
    PRINTED_ON_LORA: "LoRA r 1 + map, today's start", LEFT_ON_LORA: "LoRA r 1 + map, left start",
    LEFT_ON_DORA: "DoRA r 1 + map, left start",
}  # fmt: skip


class Asked(NamedTuple):
    """One test: on these rows ``method`` is better than ``other``, or only not worse."""

    rows: str
    method: str
    other: str
    better: bool = True


HYPOTHESES = {
    "H5: the left start against today's, on LoRA of rank 1": (
        Asked("syllogism", LEFT_ON_LORA, PRINTED_ON_LORA),
        Asked("sst2_even", LEFT_ON_LORA, PRINTED_ON_LORA, better=False),
    ),
    "H6: with a map against as many parameters without one": (
        *(Asked(rows, LEFT_ON_LORA, LORA_4)
          for rows in ("syllogism", "syllogism8", "sst2_even", "qnli")),
        *(Asked(rows, LEFT_ON_DORA, DORA_4) for rows in ("syllogism", "sst2_even")),
    ),
    "H7: the map alone against the head by itself": tuple(
        Asked(rows, method, HEAD, better=False)
        for rows in ("syllogism", "sst2_even") for method in (LEFT, PRINTED)
    ),
}  # fmt: skip


class Measured(NamedTuple):
    """A method on some rows: seeds × rows of scores (percent) and losses (nats), and its rates."""

    scores: np.ndarray
    losses: np.ndarray
    rates: list[float]


Found = dict[str, dict[str, Measured]]  # rows → method as run.py names it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, nargs="?")
    given = parser.parse_args()
    if given.study:
        keep(read(given.study), KEPT)
    before, rest = (DOCS / "study.md").read_text(encoding="utf-8").split(BEGIN)
    lines = "\n".join([BEGIN, "", *page(kept(KEPT))])
    write_atomic(DOCS / "study.md", before + lines + END + rest.split(END, 1)[1])


def read(study: Path) -> Found:
    """The candidates of the second study's comparisons that have every run."""
    found: Found = {}
    for name, asked in COMPARISONS.items():
        if asked.search != "each-seed" or not (study / name / "plan.json").is_file():
            continue
        for each in read_comparison(study / name).candidates:
            if each.runs and not each.missing:
                rates = [search["rate"] for search in each.searches]
                measured = Measured(each.scores, each.losses, rates)
                found.setdefault(asked.rows, {})[each.method] = measured
    return found


def keep(found: Found, path: Path) -> None:
    """Write what the tests need; losses to three digits."""
    plain = {
        rows: {
            method: {
                "scores": each.scores.tolist(),
                "losses": each.losses.round(3).tolist(),
                "rates": each.rates,
            }
            for method, each in methods.items()
        }
        for rows, methods in found.items()
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
            method: Measured(np.array(one["scores"]), np.array(one["losses"]), one["rates"])
            for method, one in methods.items()
        }
        for rows, methods in plain.items()
    }


def page(found: Found) -> Iterator[str]:
    """Each hypothesis with its tests, then every method."""
    for heading, asked in HYPOTHESES.items():
        there = [a for a in asked if {a.method, a.other} <= found.get(a.rows, {}).keys()]
        yield f"### {heading}"
        yield ""
        if len(there) < len(asked):
            yield f"{len(there)} of {len(asked)} tests have all of their runs."
            yield ""
        if there:
            yield from tests(there, found)
    for rows, methods in found.items():
        yield from table(rows, methods)


def tests(asked: list[Asked], found: Found) -> Iterator[str]:
    """Tests of one hypothesis, of accuracies and of losses, each with Holm's correction."""
    both = [(found[a.rows][a.method], found[a.rows][a.other]) for a in asked]
    by_score = holm([paired_p(one.scores, other.scores) for one, other in both])
    by_loss = holm([paired_p(one.losses, other.losses) for one, other in both])
    yield "| rows | method | against | seeds | points | could show | p | loss | p | |"
    yield "|---|---|---|--:|--:|--:|--:|--:|--:|---|"
    for one, (method, other), p, p_loss in zip(asked, both, by_score, by_loss, strict=True):
        points = float(method.scores.mean() - other.scores.mean())
        loss = float(method.losses.mean() - other.losses.mean())
        seeds = len(method.scores)
        least = detectable([method.scores, other.scores], seeds=seeds)
        said = f"{verdict(one, points, p)}; by loss {verdict(one, -loss, p_loss)}"
        yield (
            f"| `{one.rows}` | {NAMES[one.method]} | {NAMES[one.other]} | {seeds} | {points:+.1f} "
            f"| {least:.1f} | {p:.2g} | {loss:+.3f} | {p_loss:.2g} | {said} |"
        )
    yield ""


def verdict(asked: Asked, gain: float, p: float) -> str:
    """What a test says of its part of a hypothesis; a gain is above 0."""
    if p < ALPHA:
        return "**worse**" if gain < 0 else "better"
    return "not shown" if asked.better else "not worse"


def table(rows: str, methods: dict[str, Measured]) -> Iterator[str]:
    """Every method on some rows, the best first."""
    yield f"### All methods on `{rows}`"
    yield ""
    yield "| method | rates of the seeds | score (95 %) | by seed | loss |"
    yield "|---|---|--:|---|--:|"
    for method, one in sorted(methods.items(), key=lambda pair: -pair[1].scores.mean()):
        low, high = interval(one.scores)
        rates = ", ".join(f"{rate:.2g}" for rate in one.rates)
        seeds = ", ".join(f"{score:.1f}" for score in one.scores.mean(axis=1))
        yield (
            f"| {NAMES.get(method, method)} | {rates} | {one.scores.mean():.1f} ({low:.1f} to "
            f"{high:.1f}) | {seeds} | {one.losses.mean():.3f} |"
        )
    yield ""


if __name__ == "__main__":
    main()
