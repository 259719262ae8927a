"""Write the results of the second study into docs/studies/map.md, with the tests of H5 to H7.

    python studies/trained/second.py study    # reads the comparisons, keeps what the tests need
    python studies/trained/second.py          # the page again, from what is kept

``study`` is the folder of ``run.py``. Kept are the score and the loss of every held-out row with
every seed, in docs/results/study2.json.gz; ``study`` may hold a part of the comparisons, and
candidates without all of their runs are left out.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bootstrap import interval
from foretold import detectable, fixed_p
from kept import DOCS, Found, Measured, corrected, keep, kept, read, write_part
from picture import Difference, draw
from run import (
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
    SECOND,
    WRITER_METHODS,
)

from lorada.decision.statistics import ALPHA, holm

KEPT = DOCS / "results" / "study2.json.gz"
SCRIPT = "studies/trained/second.py"
NAMES = {
    HEAD: "head alone", LORA: "LoRA r 1", LORA_4: "LoRA r 4", DORA: "DoRA r 1", DORA_4: "DoRA r 4",
    PRINTED: "map, today's start", LEFT: "map, left start",
    PRINTED_ON_LORA: "LoRA r 1 + map, today's start", LEFT_ON_LORA: "LoRA r 1 + map, left start",
    LEFT_ON_DORA: "DoRA r 1 + map, left start",
}  # fmt: skip
# The comparisons that this page is made of → the name of their rows; that on a model that writes
# keeps its own name.
WRITERS = "writers"
WANTED = {name: asked.rows for name, asked in SECOND.items()} | {WRITERS: WRITERS}


class Asked(NamedTuple):
    """One test: on these rows ``method`` is better than ``other``, or only not worse."""

    rows: str
    method: str
    other: str
    better: bool = True


QUESTIONS = {
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
    "No hypothesis: a model that writes, against LoRA": tuple(
        Asked(WRITERS, method, "lora") for method in WRITER_METHODS if method != "lora"
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, nargs="?")
    given = parser.parse_args()
    if given.study:
        keep(read(given.study, WANTED), KEPT)
    found = kept(KEPT)
    write_part(DOCS / "studies" / "map.md", SCRIPT, "\n".join(["", *page(found)]))
    draw(sections(found), DOCS / "studies" / "study2.png")


def title(method: str) -> str:
    """A method as the page names it."""
    return NAMES.get(method, method)


def with_runs(asked: Iterable[Asked], found: Found) -> list[Asked]:
    """The tests of which both methods have all of their runs."""
    return [a for a in asked if {a.method, a.other} <= found.get(a.rows, {}).keys()]


def sections(found: Found) -> list[tuple[str, list[Difference]]]:
    """What the picture shows: the tests of each hypothesis."""
    shown = []
    for heading, asked in QUESTIONS.items():
        differences = [
            Difference(
                f"{a.rows}: {title(a.method)} − {title(a.other)}",
                found[a.rows][a.method],
                found[a.rows][a.other],
            )
            for a in with_runs(asked, found)
        ]
        if differences:
            shown.append((heading, differences))
    return shown


def page(found: Found) -> Iterator[str]:
    """The picture, each hypothesis with its tests, then every method."""
    yield "![Each test: the difference with its 95 % interval](study2.png)"
    yield ""
    yield "Intervals are of one difference alone; p and colours are corrected for their number."
    yield ""
    for heading, asked in QUESTIONS.items():
        there = with_runs(asked, found)
        yield f"### {heading}"
        yield ""
        if len(there) < len(asked):
            yield f"{len(there)} of {len(asked)} tests have all of their runs."
            yield ""
        if there:
            yield from tests(there, found)
    yield from cuts(found)
    for rows, methods in found.items():
        yield from table(rows, {name: one for name, one in methods.items() if ":cut=" not in name})


def cuts(found: Found) -> Iterator[str]:
    """Trained maps that are cut to positions with enough training rows, against the whole ones."""
    whole = [
        (rows, name, name.partition(":cut=")[0]) for rows in found for name in found[rows]
        if ":cut=" in name
    ]  # fmt: skip
    if not whole:
        return
    both = [(found[rows][name], found[rows][method]) for rows, name, method in whole]
    none = np.zeros(both[0][0].scores.shape[1])
    # The same runs, cut and whole: so each difference is of one run, against none.
    by_score, by_loss = (
        holm([fixed_p(getattr(cut, what) - getattr(one, what), none) for cut, one in both])
        for what in ("scores", "losses")
    )
    yield "### Maps cut after training to positions that enough rows had"
    yield ""
    yield (
        "No hypothesis. A cut leaves out the positions that fewer than a share of the training "
        "rows had; the runs are the same, cut and whole, so each is compared with itself."
    )
    yield ""
    yield "| rows | method | share | points | p | loss | p |"
    yield "|---|---|--:|--:|--:|--:|--:|"
    for (rows, name, method), (cut, one), *ps in zip(whole, both, by_score, by_loss, strict=True):
        points, loss = cut.scores.mean() - one.scores.mean(), cut.losses.mean() - one.losses.mean()
        share = float(name.partition(":cut=")[2])
        yield (
            f"| `{rows}` | {NAMES[method]} | {share:.0%} | {points:+.1f} | {ps[0]:.2g} "
            f"| {loss:+.3f} | {ps[1]:.2g} |"
        )
    yield ""


def tests(asked: list[Asked], found: Found) -> Iterator[str]:
    """Tests of one hypothesis, of accuracies and of losses, each with Holm's correction."""
    both = [(found[a.rows][a.method], found[a.rows][a.other]) for a in asked]
    by_score, by_loss = corrected(both)
    yield "| rows | method | against | seeds | points | could show | p | loss | p | |"
    yield "|---|---|---|--:|--:|--:|--:|--:|--:|---|"
    for one, (method, other), p, p_loss in zip(asked, both, by_score, by_loss, strict=True):
        points = float(method.scores.mean() - other.scores.mean())
        loss = float(method.losses.mean() - other.losses.mean())
        seeds = len(method.scores)
        least = detectable([method.scores, other.scores], seeds=seeds)
        said = f"{verdict(one, points, p)}; by loss {verdict(one, -loss, p_loss)}"
        yield (
            f"| `{one.rows}` | {title(one.method)} | {title(one.other)} | {seeds} | {points:+.1f} "
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
    yield "| method | parameters | rates of the seeds | score (95 %) | by seed | loss |"
    yield "|---|--:|---|--:|---|--:|"
    for method, one in sorted(methods.items(), key=lambda pair: -pair[1].scores.mean()):
        low, high = interval(one.scores)
        rates = ", ".join(f"{rate:.2g}" for rate in one.rates)
        seeds = ", ".join(f"{score:.1f}" for score in one.scores.mean(axis=1))
        count = 0 if method == HEAD else one.parameters  # its LoRA is multiplied by 0
        yield (
            f"| {title(method)} | {count:,} | {rates} | {one.scores.mean():.1f} "
            f"({low:.1f} to {high:.1f}) | {seeds} | {one.losses.mean():.3f} |"
        )
    yield ""


if __name__ == "__main__":
    main()
