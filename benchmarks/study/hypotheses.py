"""The tests of the study's hypotheses, as docs/study.md states them, as Markdown tables."""

from collections.abc import Callable, Iterator

from run import ABLATIONS, CONTROLS, HEAD, LORA, LORA_4, PLUGINS, PRINTED, PRINTED_ON_LORA

from lorada.compare.report.read import CandidateResult
from lorada.compare.statistics import ALPHA, holm, paired_p

# Rows, or the name of a comparison at a budget → method as run.py names it → candidate.
Found = dict[str, dict[str, CandidateResult]]
Pair = tuple[str, str, str]  # rows, the method that should be better, the other

MOVES = ("syllogism", "syllogism8", "syllogism32")


def tables(found: Found, title: Callable[[str], str]) -> Iterator[str]:
    """One section for each hypothesis."""
    plugins = [(LORA, PRINTED_ON_LORA), *zip(PLUGINS[::2], PLUGINS[1::2], strict=True)]
    asked: dict[str, list[Pair]] = {
        "H1: the printed map on top of other methods": [
            (task, added, plain) for task in found for plain, added in plugins
        ],
        "Beside H1: against as many parameters without a map": [
            (task, added, control)
            for task in found
            for added, control in zip(
                (PRINTED_ON_LORA, *PLUGINS[1:4:2]), (LORA_4, *CONTROLS), strict=True
            )
        ],
        "H2: the printed map against its ablations": [
            ("syllogism", PRINTED, ablation) for ablation in ABLATIONS
        ],
        "H3: the map where the form moves": [
            (task, *pair) for task in MOVES for pair in ((PRINTED, HEAD), (PRINTED_ON_LORA, LORA))
        ],
    }
    for heading, pairs in asked.items():
        yield from _table(heading, [pair for pair in pairs if _there(found, pair)], found, title)


def _there(found: Found, pair: Pair) -> bool:
    task, better, other = pair
    return better in found.get(task, {}) and other in found.get(task, {})


def _table(
    heading: str, pairs: list[Pair], found: Found, title: Callable[[str], str]
) -> Iterator[str]:
    if not pairs:
        return
    both = [(found[task][better], found[task][other]) for task, better, other in pairs]
    corrected = holm([paired_p(a.scores, b.scores) for a, b in both])
    yield f"### {heading}"
    yield ""
    yield "| rows | method | against | points | p | p by Holm | loss | its p | |"
    yield "|---|---|---|--:|--:|--:|--:|--:|---|"
    for (task, better, other), (a, b), p in zip(pairs, both, corrected, strict=True):
        points = a.scores.mean() - b.scores.mean()
        word = "" if p >= ALPHA else "**better**" if points > 0 else "**worse**"
        yield (
            f"| `{task}` | {title(better)} | {title(other)} | {points:+.1f} | "
            f"{paired_p(a.scores, b.scores):.2g} | {p:.2g} | "
            f"{a.losses.mean() - b.losses.mean():+.3f} | {paired_p(a.losses, b.losses):.2g} | "
            f"{word} |"
        )
    yield ""
