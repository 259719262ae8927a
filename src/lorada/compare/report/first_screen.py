"""What stands beside the verdict of a report: how sure it is, and what comes next."""

from dataclasses import dataclass

from lorada.compare.report.candidate_lines import CandidateLine
from lorada.compare.report.summarize_comparison import Summary
from lorada.support.in_words import counted

NAMED = 6  # candidates that a sentence names at most


@dataclass(frozen=True)
class Link:
    """A sentence that leads to a part of the page.

    Attributes:
        text: the sentence.
        target: the name of the part.
    """

    text: str
    target: str


def how_sure(summary: Summary) -> list[str]:
    """How much the verdict can be trusted, in a few sentences."""
    sentences = [_measured_on(summary)] if summary.scored else []
    decision = summary.decision
    best = next((line for line in summary.scored if line.label == summary.best), None)
    if decision is None or best is None:
        return sentences
    others = [line for line in summary.scored if line is not best]
    if others:
        sentences += _against_others(summary, best, others)
    if len(best.seed_scores) > 1:
        sentences.append(_its_seeds(summary, best))
    if others:
        sentences += _measured_beside_expected(summary, best)
    return sentences


def _measured_beside_expected(summary: Summary, best: CandidateLine) -> list[str]:
    """Why the verdict expects another score, and so another gain, than the table has."""
    decision, shown = summary.decision, summary.score_format
    if decision is None or decision.expected_score is None or best.score is None:
        return []
    measured, expected = shown.score(best.score), shown.score(decision.expected_score)
    if measured == expected:
        return []
    return [
        f"{measured} was measured for {best.label}, and {expected} is expected on new rows and "
        "seeds: the best of several measured scores is partly luck. The table has what was "
        "measured."
    ]


def _its_seeds(summary: Summary, best: CandidateLine) -> str:
    """Between which scores its seeds lie."""
    shown = summary.score_format
    lowest, highest = min(best.seed_scores), max(best.seed_scores)
    range_in_words = shown.score(highest)
    if shown.number(lowest) != shown.number(highest):
        range_in_words = f"{shown.number(lowest)} to {range_in_words}"
    return f"The {len(best.seed_scores)} seeds of {best.label} score {range_in_words}."


def _measured_on(summary: Summary) -> str:
    seeds = sorted({len(line.result.runs) for line in summary.scored})
    count = counted(seeds[-1], "seed")
    if len(seeds) > 1:
        count = f"{seeds[0]} to {count}"
    candidates = counted(len(summary.scored), "candidate")
    return f"Measured on {counted(summary.rows, 'held-out row')}, {candidates} with {count} each."


def _against_others(
    summary: Summary, best: CandidateLine, others: list[CandidateLine]
) -> list[str]:
    """How the one to take stands to the other candidates, by test and by probability."""
    decision = summary.decision
    if decision is None or not best.decided.letter:
        return []
    alike = [line.label for line in others if not decision.differ(line.label, best.label)]
    sentences = [f"{best.label} differs significantly from every other candidate."]
    if alike:
        which = _listed(alike)
        if len(alike) == len(others):
            which = "any other candidate" if len(others) > 1 else alike[0]
        sentences = [f"{best.label} does not differ significantly from {which}."]
    if decision.p_best is not None:
        share = _percent(decision.p_best)
        sentences.append(f"The probability that it is the best of those compared is {share}.")
    return sentences


def _percent(probability: float) -> str:
    """A probability in percent; one that is nearly 0 or 1 is not rounded to it."""
    percent = min(max(round(100 * probability), 1), 99)
    if probability > 0.995:
        return "above 99 %"
    if probability < 0.005:
        return "below 1 %"
    return f"{percent} %"


def _listed(labels: list[str]) -> str:
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return ", ".join(labels[:NAMED]) + more


def where_to_look(summary: Summary) -> list[Link]:
    """The parts of the page that show what to look at next."""
    links, rows = [], summary.shown_rows
    if rows.wrong:
        links.append(
            Link(
                "Rows that no method gets right: a wrong label is likelier there than elsewhere",
                "wrong-rows",
            )
        )
    if rows.unstable:
        links.append(Link("Rows that are right with one seed and wrong with another", "unstable"))
    if rows.divided:
        links.append(Link("Rows on which candidates disagree", "disagreements"))
    return links
