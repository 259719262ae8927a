"""What is decided about methods: which to take, and what is known of each."""

from collections.abc import Mapping
from dataclasses import dataclass

COSTS = ("parameters", "seconds", "bytes")  # what counts first, then what decides between equals
CHEAPER = 0.8  # of another's cost: what is nearer is the granularity of sizes
Costs = Mapping[str, Mapping[str, float]]  # method → kind of cost → how much


@dataclass(frozen=True)
class Decision:
    """Which method to take, and what is known of each.

    Attributes:
        sentence: the decision in plain English, and what is not known.
        pick: the method to take; None if none has a score, or none has learned.
        highest: the method with the best mean score; None if none has a score.
        leader: the one that the rule starts from: ``highest``, unless it has too few runs or some
            of them diverged; None without a pick.
        scores: method → mean over rows, and over the runs that did not diverge.
        intervals: method → ends of the 95 % confidence interval of that.
        expected_loss: method → how far its true mean is expected to be from that of the best, in
            the unit of the scores; empty if no method has two runs.
        not_worse: the cheaper methods that are shown to be not worse than ``leader`` by the margin.
        runs: method → its runs, those that diverged too.
        diverged: method → how many of its runs diverged, if any.
        untested: methods that have a score and too few runs to be tested.
        unlearned: methods that have not learned: no run is above all scores without training.
        baselines: name → mean score without training.
        costs: method → its costs.
        margin: that a cheaper method may cost, in the unit of the scores.
        unit: of the scores, such as ``%``.
        lower_is_better: whether scores are losses or errors.
    """

    sentence: str
    pick: str | None
    highest: str | None
    leader: str | None
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    expected_loss: dict[str, float]
    not_worse: tuple[str, ...]
    runs: dict[str, int]
    diverged: dict[str, int]
    untested: tuple[str, ...]
    unlearned: tuple[str, ...]
    baselines: dict[str, float]
    costs: Costs
    margin: float
    unit: str
    lower_is_better: bool

    def mark(self, name: str) -> str:
        """What is decided about a method, in a word or two; empty for one that is just worse."""
        diverged = f"{self.diverged.get(name)} of {self.runs.get(name)} diverged"
        marks = {
            "take": name == self.pick, "not learned": name in self.unlearned,
            diverged: name in self.diverged, "too few runs": name in self.untested,
            "highest": name == self.highest, "not worse": name in self.not_worse,
        }  # fmt: skip
        return next((mark for mark, is_so in marks.items() if is_so), "")


def saved(costs: Costs, one: str, other: str) -> tuple[str, float] | None:
    """The first cost in which two methods differ, and one's share of it, if one has less."""
    for kind in COSTS:
        a, b = (costs.get(name, {}).get(kind) for name in (one, other))
        if a is not None and b is not None and min(a, b) < CHEAPER * max(a, b):
            return (kind, a / b) if a < b else None
    return None
