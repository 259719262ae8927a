"""What is decided about methods: which to take, what is known of each, and how that is said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COSTS = ("parameters", "seconds", "bytes")  # what counts first, then what decides between equals
CHEAPER = 0.8  # of another's cost: what is nearer is the granularity of sizes
Costs = Mapping[str, Mapping[str, float]]  # method → kind of cost → how much
# A share of a cost → its words.
SHARES = {
    0.1: "a tenth", 0.2: "a fifth", 0.25: "a quarter", 1 / 3: "a third", 0.5: "half",
    2 / 3: "two thirds", 0.75: "three quarters",
}  # fmt: skip
NAMED = 5  # methods that a sentence names at most
NEAR = 0.05  # relative; a share that is nearer than this needs no "about"
SAVED = {
    "parameters": "trains {} of the parameters",
    "seconds": "takes {} of the time",
    "bytes": "needs {} of the memory",
}


@dataclass(frozen=True)
class Decision:
    """Which method to take, and what is known of each.

    Attributes:
        sentence: the decision in plain English, and what is not known.
        pick: the method to take; None if none has a score, or none has learned.
        expected_score: what the mean score of the pick is expected to be on new rows and with new
            seeds. The measured one is too high where it was chosen for being high. None without a
            pick, or if no method has two runs; so are the next three.
        expected_interval: between which values that is, with a probability of 95 %.
        p_best: how probable it is that the pick is the best method.
        loss_after_more_runs: the expected loss of taking the highest score after three more runs of
            each method; None, too, where the pick is not the highest score of those that learned.
        highest: the method with the best mean score; None if none has a score.
        leader: the one that the rule starts from: ``highest``, unless some of its runs diverged; of
            different numbers of runs the least expected loss. None without a pick.
        scores: method → mean over rows, and over the runs that did not diverge.
        intervals: method → ends of the 95 % confidence interval of that.
        expected_loss: method → how far its true mean is expected to be from that of the best, in
            the unit of the scores; empty if no method has two runs.
        claimed_loss: what is said of the pick: its expected loss; for one that is taken because it
            is cheaper, the larger of this and the bound of what it costs. None if unknown.
        not_worse: the cheaper methods that are shown to be not worse than ``leader`` by the margin.
        letters: method → its letters: two methods share one if, and only if, they are not
            significantly different. A method that is not tested has an empty text.
        no_letters: why nothing can be tested; empty if something is, or if there is one method.
        p_highest: method → the p-value of its difference from the best of those that are tested,
            corrected for all pairs of these by Holm's method.
        runs: method → its runs, those that diverged too.
        diverged: method → how many of its runs diverged, if any.
        untested: methods that have a score and too few runs to be tested.
        unlearned: methods that are not shown to have learned: no run is above all scores without
            training.
        rows_to_learn: such a method → about how many rows would show it, with 80 % power and if its
            measured gain is the true one; without those that gain nothing.
        baselines: name → mean score without training.
        costs: method → its costs.
        margin: that a cheaper method may cost, in the unit of the scores; None where it is not
            given and the unit has no default, so that no cheaper method is taken.
        unit: of the scores, such as ``%``; empty if it is not known.
        lower_is_better: whether scores are losses or errors.
    """

    sentence: str
    pick: str | None
    expected_score: float | None
    expected_interval: tuple[float, float] | None
    p_best: float | None
    loss_after_more_runs: float | None
    highest: str | None
    leader: str | None
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    expected_loss: dict[str, float]
    claimed_loss: float | None
    not_worse: tuple[str, ...]
    letters: dict[str, str]
    no_letters: str
    p_highest: dict[str, float]
    runs: dict[str, int]
    diverged: dict[str, int]
    untested: tuple[str, ...]
    unlearned: tuple[str, ...]
    rows_to_learn: dict[str, int]
    baselines: dict[str, float]
    costs: Costs
    margin: float | None
    unit: str
    lower_is_better: bool

    def mark(self, name: str) -> str:
        """What is decided about a method, in a word or two; empty for one that is just worse."""
        diverged = f"{self.diverged.get(name)} of {self.runs.get(name)} diverged"
        marks = {
            "take": name == self.pick, "not shown to learn": name in self.unlearned,
            diverged: name in self.diverged, "too few runs": name in self.untested,
            "highest": name == self.highest,
            "within the margin": name in self.not_worse and self.differ(name, self.leader),
            "not worse": name in self.not_worse,
        }  # fmt: skip
        return next((mark for mark, is_so in marks.items() if is_so), "")

    def differ(self, name: str, other: str | None) -> bool:
        """Whether two methods are tested and have no letter in common."""
        letters = self.letters.get(name, ""), self.letters.get(other or "", "")
        return all(letters) and not set(letters[0]) & set(letters[1])

    @property
    def least_shown(self) -> float:
        """The smallest difference that is written as a number: a smaller one is "less than" it."""
        if self.unit == "%":
            return 0.1
        return float(f"{(self.margin_to_give if self.margin is None else self.margin) / 10:.0e}")

    @property
    def margin_to_give(self) -> float:
        """A tenth of what methods differ by: a margin to give where there is no default."""
        scores = [score for name, score in self.scores.items() if name not in self.unlearned]
        scores = scores or list(self.scores.values())
        return float(f"{(max(scores) - min(scores)) / 10:.0e}")


def saved(costs: Costs, one: str, other: str) -> tuple[str, float] | None:
    """The first cost in which two methods differ, and one's share of it, if one has less."""
    for kind in COSTS:
        a, b = (costs.get(name, {}).get(kind) for name in (one, other))
        if a is not None and b is not None and min(a, b) < CHEAPER * max(a, b):
            return (kind, a / b) if a < b else None
    return None


def sentence(found: Decision) -> str:
    """The decision in a few sentences, the score first."""
    if found.highest is None:
        return "All runs diverged, so no method has a score."
    if found.pick is None:
        return _nothing_learned(found, found.highest)
    sentences = [_take(found, found.pick), _expected(found, found.pick), _margin_missing(found)]
    mentioned = (found.pick, found.highest)
    unmentioned_diverged = [name for name in found.diverged if name not in mentioned]
    if unmentioned_diverged:
        sentences.append(
            f"{', '.join(_diverged(found, name, name) for name in unmentioned_diverged)}."
        )
    explained = () if found.highest == found.leader else (found.highest,)
    few = [name for name in found.untested if name not in (*explained, *found.diverged)]
    if few and found.expected_loss:
        sentences.append(f"Too few runs for a test: {_listed(few)}.")
    if len(found.scores) - len(found.untested) > 1:
        sentences.append(found.no_letters)
    return " ".join(filter(None, sentences))


def _take(found: Decision, pick: str) -> str:
    """What to take, and why it is not the highest score if it is not."""
    said = f"Take {pick} ({_on_new_rows(found, pick)})"
    reasons = []
    highest, leader = found.highest or pick, found.leader or pick
    if highest in found.unlearned:  # the rows are too few to show that it is above
        highest = leader
    if highest != leader:
        why = _why_not_highest(found, highest)
        reasons.append(f"{highest} scores {_score(found, found.scores[highest])}, but {why}")
    if pick != leader:
        reasons.append(
            f"{pick} {_saving(found, pick, leader)} of {leader} "
            f"({_score(found, found.scores[leader])}) and is {_not_worse(found, pick, leader)}"
        )
    if pick in found.diverged:
        reasons.append(f"{_diverged(found, pick)}, but {_none_steady(found)}")
    if found.unlearned:
        are = "is" if len(found.unlearned) == 1 else "are"
        said += (
            f" in what is a comparison of learning rates: {_listed(found.unlearned)} {are} not "
            f"shown to have learned at the tried rates{_rows_to_learn(found, found.unlearned)}"
        )
    between = ". " if found.unlearned else ": "
    return between.join([said, *filter(None, ["; ".join(reasons)])]) + "."


def _why_not_highest(found: Decision, highest: str) -> str:
    """Why the highest score is not the one that the rule starts from."""
    if highest in found.diverged:
        return _diverged(found, highest)
    if highest in found.untested:
        return f"{highest} has too few runs ({found.runs[highest]}) for a test"
    lost = _points(found, _number(found, found.expected_loss[highest]))
    return f"{highest} has {found.runs[highest]} runs and is expected to lose {lost}"


def _on_new_rows(found: Decision, pick: str) -> str:
    """The score that the pick is expected to have, or the measured one if nothing is expected."""
    if found.expected_score is None or found.expected_interval is None:
        return _score(found, found.scores[pick])
    low, high = (_bare(found, end) for end in found.expected_interval)
    if low == high:
        return _score(found, found.scores[pick])
    return f"expect {_score(found, found.expected_score)}, {low} to {high}, on new rows and seeds"


def _not_worse(found: Decision, pick: str, leader: str) -> str:
    """By how much a cheaper method is not worse; by a wide margin it may be worse for certain."""
    margin = _points(found, f"{found.margin or 0.0:.3g}")
    if found.differ(pick, leader):
        return f"significantly worse, but not by more than {margin} (90 % confidence)"
    return f"not worse by more than {margin} (90 % confidence)"


def _none_steady(found: Decision) -> str:
    """Why a method is taken some of whose runs diverged."""
    if found.margin is None:
        return "no method whose runs all finished scores as much, and no margin is given"
    margin = _points(found, f"{found.margin:.3g}")
    return f"no method whose runs all finished is within {margin}"


def _margin_missing(found: Decision) -> str:
    """That a cheaper method could be taken if a margin were given; empty if there is none."""
    if found.margin is not None or found.leader is None:
        return ""
    left_out = (*found.unlearned, *found.diverged, *found.untested)
    names = [name for name in found.scores if name not in left_out]
    if not any(saved(found.costs, name, found.leader) for name in names):
        return ""
    said = (
        "A cheaper method is taken only by a margin, which has no default in this unit: give what "
        f"it may cost, such as {_points(found, f'{found.margin_to_give:g}')}"
    )
    scores = found.scores.values()
    may_be_percent = min(scores) >= 0 and 1 < max(scores) <= 100
    if may_be_percent and not found.unit and not found.lower_is_better:
        return f"{said}, or the unit % if scores are percent."
    return f"{said}."


def _rows_to_learn(found: Decision, names: Sequence[str]) -> str:
    """How many rows would show that methods have learned, in brackets; empty if none would."""
    needed = [found.rows_to_learn[name] for name in names if name in found.rows_to_learn]
    if not needed:
        return ""
    ends = dict.fromkeys(f"{float(f'{rows:.1e}'):,.0f}" for rows in (min(needed), max(needed)))
    of = "" if len(needed) == len(names) else f" of {len(needed)} of them"
    return f" (about {' to '.join(ends)} rows would show it{of})"


def _expected(found: Decision, pick: str) -> str:
    """How far the pick is expected to be from the best, and the alternative that saves most."""
    if len(found.scores) == 1:
        return "No other method has a score."
    if not found.expected_loss:
        return (
            "It has the best score of one run each, and how much runs differ is not known: train "
            "two seeds or more."
        )
    loss = found.expected_loss[pick]
    worse = "above" if found.lower_is_better else "below"
    said = f"Expected to be {_points(found, _number(found, loss))} {worse} the true best"
    others = [name for name in found.scores if name not in (pick, *found.unlearned)]
    cheaper = [name for name in others if saved(found.costs, name, pick)]
    if found.leader and found.leader != pick:
        bound = found.claimed_loss or loss
        if bound > loss:
            most = _points(found, _number(found, bound))
            said += f", and at most {most} {worse} {found.leader} (90 % confidence)"
        lost = _number(found, found.expected_loss[found.leader])
        return f"{said}; {found.leader} is expected to lose {lost}."
    more = _more_runs(found, pick)
    if not cheaper:
        return f"{said}.{more}"
    other = min(cheaper, key=found.expected_loss.__getitem__)
    lost = _number(found, found.expected_loss[other])
    return f"{said}; {other} {_saving(found, other, pick)} and is expected to lose {lost}.{more}"


def _more_runs(found: Decision, pick: str) -> str:
    """What three more seeds of each method would save; empty if it cannot be seen in the numbers.

    Below the margin a loss does not matter, and more seeds are not worth their time.
    """
    now, later = found.expected_loss[pick], found.loss_after_more_runs
    if later is None or now <= (found.margin or 0.0):
        return ""
    before, after = _number(found, now), _number(found, later)
    if before == after or later >= now:
        return ""
    return f" Three more seeds each: expected loss {after} instead of {before}."


def _nothing_learned(found: Decision, highest: str) -> str:
    best = (min if found.lower_is_better else max)(found.baselines, key=found.baselines.__getitem__)
    alone = len(found.scores) == 1
    which = f"{highest} is not" if alone else "No method is"
    rows = _rows_to_learn(found, [highest])
    return (
        f"{which} shown to have learned at the tried rates{rows}: the best score, "
        f"{_score(found, found.scores[highest])} of {highest}, is not significantly better than "
        f"{best} ({_score(found, found.baselines[best])})."
    )


def _saving(found: Decision, one: str, other: str) -> str:
    """What one method has less of than another: ``trains a third of the parameters``."""
    kind, share = saved(found.costs, one, other) or ("parameters", 1.0)
    near = min(SHARES, key=lambda known: abs(known / share - 1) if share else known)
    words = SHARES[near] if abs(near - share) < NEAR * near else f"{100 * share:.2g} %"
    return SAVED[kind].format(words)


def _diverged(found: Decision, name: str, whose: str = "") -> str:
    """How many runs diverged: ``3 of its 5 runs diverged``, or of those of a name."""
    of = f" of {whose}" if whose else ""
    return f"{found.diverged[name]} of {'' if of else 'its '}{found.runs[name]} runs{of} diverged"


def _score(found: Decision, value: float) -> str:
    return f"{_bare(found, value)} {found.unit}".strip()


def _bare(found: Decision, value: float) -> str:
    """A score without its unit."""
    return f"{value:.1f}" if found.unit == "%" else f"{value:.4g}"


def _points(found: Decision, number: str) -> str:
    """A difference with its unit: ``0.2 points``."""
    unit = found.unit if found.unit != "%" else "point" if number == "1" else "points"
    return f"{number} {unit}".strip()


def _number(found: Decision, value: float) -> str:
    least = found.least_shown
    if value < least / 2:
        return f"less than {least:g}"
    return f"{value:.1f}" if found.unit == "%" else f"{value:.2g}"


def _listed(names: Sequence[str]) -> str:
    rest = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    *first, last = [*names[:NAMED], *rest]
    return f"{', '.join(first)} and {last}" if first else last
