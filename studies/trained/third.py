"""Write the results of the third study into docs/studies/map.md: a map whose own rate was searched.

    python studies/trained/third.py study    # reads the comparisons, keeps what the tests need
    python studies/trained/third.py          # the page again, from what is kept

``study`` is the folder of ``run.py``. Kept are the score and the loss of every held-out row with
every seed, in docs/results/study3.json.gz.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from kept import DOCS, Found, Measured, keep, kept, read, write_part
from run import (
    ABLATIONS,
    COMPARISONS,
    DORA,
    DORA_4,
    FULL_RANK,
    LORA,
    LORA_4,
    ON_DORA_TOO,
    ON_LORA,
    PRINTED,
    PRINTED_ON_DORA,
    PRINTED_ON_LORA,
)

from lorada.decision.statistics import (
    ALPHA,
    Scores,
    detectable_by,
    difference,
    holm,
    mean_score,
    paired_p,
    seeds_correlate,
)

KEPT = DOCS / "results" / "study3.json.gz"
# What Table 9 (means of Table 14) says of LoRaDA-LA without this, in points. It has one row without
# softmax's signs (docs/readings.md, reading 17).
PUBLISHED = {"no_negative": -4.8, "softmax": -42.9, "no_position": -2.9, "full_rank": -7.8}
WITHOUT = {each.rpartition("=")[2]: each for each in (FULL_RANK, *ABLATIONS)}
NAMES = {
    LORA: "LoRA r 1", LORA_4: "LoRA r 4", PRINTED_ON_LORA: "LoRA r 1 + map",
    DORA: "DoRA r 1", DORA_4: "DoRA r 4", PRINTED_ON_DORA: "DoRA r 1 + map",
    PRINTED: "map alone",
    **{each: f"map, {name.replace('_', ' ')}" for name, each in WITHOUT.items()},
}  # fmt: skip
WANTED = {
    name: asked.rows for name, asked in COMPARISONS.items()
    if name.endswith("_sizes") or name == "syllogism_ablations"
} | {"syllogism_full_rank": "syllogism_full_rank"}  # fmt: skip
ON_LORA_ROWS, ON_DORA_ROWS = (
    [asked.rows for asked in COMPARISONS.values() if asked.methods == methods]
    for methods in (ON_LORA, ON_DORA_TOO)
)
Pair = tuple[str, str, str]  # rows, the method with a map, the other
QUESTIONS: dict[str, list[Pair]] = {
    "H8: with a map against the same method without one": [
        *((rows, PRINTED_ON_LORA, LORA) for rows in ON_LORA_ROWS),
        *((rows, PRINTED_ON_DORA, DORA) for rows in ON_DORA_ROWS),
    ],
    "H6 again: with a map against as many parameters without one": [
        *((rows, PRINTED_ON_LORA, LORA_4) for rows in ON_LORA_ROWS),
        *((rows, PRINTED_ON_DORA, DORA_4) for rows in ON_DORA_ROWS),
    ],
    "H2 again: the map alone without its parts against the map alone": [
        ("syllogism_full_rank", FULL_RANK, PRINTED),
        *(("syllogism", ablation, PRINTED) for ablation in ABLATIONS),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, nargs="?")
    given = parser.parse_args()
    if given.study:
        keep(read(given.study, WANTED), KEPT)
    write_part(
        DOCS / "studies" / "map.md", "studies/trained/third.py", "\n".join(["", *page(kept(KEPT))])
    )


def page(found: Found) -> Iterator[str]:
    """Each hypothesis with its tests, then every method."""
    for heading, pairs in QUESTIONS.items():
        there = [(rows, a, b) for rows, a, b in pairs if {a, b} <= found.get(rows, {}).keys()]
        yield f"### {heading}"
        yield ""
        if len(there) < len(pairs):
            yield f"{len(there)} of {len(pairs)} tests have all of their runs."
            yield ""
        yield from tests(there, found, len(pairs))
    yield (
        "Without it the paper's LoRaDA-LA loses (Table 9): "
        + ", ".join(f"{name.replace('_', ' ')} {PUBLISHED[name]:+.1f}" for name in WITHOUT)
        + " points."
    )
    yield ""
    yield from methods(found)


def tests(pairs: list[Pair], found: Found, planned: int) -> Iterator[str]:
    """Tests of one hypothesis, by accuracies and by losses.

    Each has Holm's correction for all that are ``planned``, also those that have not run.
    """
    both = [(found[rows][a], found[rows][b]) for rows, a, b in pairs]
    missing = [1.0] * (planned - len(pairs))
    by_score = holm([*(p_value(a.scores, b.scores) for a, b in both), *missing])[: len(pairs)]
    by_loss = holm([*(p_value(-a.losses, -b.losses) for a, b in both), *missing])[: len(pairs)]
    yield "| rows | method | against | seeds | points (95 %) | 80 % power for | p | loss | p |"
    yield "|---|---|---|--:|--:|--:|--:|--:|--:|"
    for (rows, *names), (a, b), p, p_loss in zip(pairs, both, by_score, by_loss, strict=True):
        gap = difference(a.scores, b.scores, by_seed=seeds_correlate(a.scores, b.scores))
        low, high = gap.interval()
        plain = difference(a.scores, b.scores)
        least = detectable_by([(plain.error, plain.freedom)], 1)
        loss = float(a.losses.mean() - b.losses.mean())
        words = [f"**{p:.2g}**" if p < ALPHA else f"{p:.2g}" for p in (p, p_loss)]
        yield (
            f"| `{rows}` | {NAMES[names[0]]} | {NAMES[names[1]]} | {len(a.scores)} "
            f"| {gap.value:+.1f} ({low:+.1f} to {high:+.1f}) "
            f"| {least:.1f} | {words[0]} | {loss:+.3f} | {words[1]} |"
        )
    yield ""


def p_value(a: Scores, b: Scores) -> float:
    """Of a difference; runs of one seed are pairs where the means of the runs correlate."""
    return paired_p(a, b, by_seed=seeds_correlate(a, b))


def methods(found: Found) -> Iterator[str]:
    """Every method on all rows, the best first."""
    yield "### All methods of the third study"
    yield ""
    yield "| rows | method | parameters | rate | rate of the map | score (95 %) | by seed | loss |"
    yield "|---|---|--:|--:|--:|--:|---|--:|"
    for rows, each in found.items():
        for method, one in sorted(each.items(), key=lambda pair: -pair[1].scores.mean()):
            yield line(rows, method, one)
    yield ""


def line(rows: str, method: str, one: Measured) -> str:
    """The line of a method."""
    low, high = mean_score(one.scores).interval()
    seeds = ", ".join(f"{score:.1f}" for score in one.scores.mean(axis=1))
    maps = ", ".join(f"{rate:.2g}" for rate in one.map_rates) or "–"
    return (
        f"| `{rows}` | {NAMES[method]} | {one.parameters:,} | {one.rates[0]:.2g} | {maps} "
        f"| {one.scores.mean():.1f} ({low:.1f} to {high:.1f}) | {seeds} | {one.losses.mean():.3f} |"
    )


if __name__ == "__main__":
    main()
