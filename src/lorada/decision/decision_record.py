"""What is decided about methods: which to take, and what is known of each."""

from dataclasses import dataclass

from lorada.decision.costs import Costs
from lorada.decision.gain import Gain
from lorada.decision.score_format import ScoreFormat


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
        unlearned: methods that are not shown to have learned: neither a run nor their mean is
            significantly above all ``baselines``. Once any method has learned, only those of them
            that also gain little beside the best one.
        rows_to_learn: such a method → about how many rows would show it, with 80 % power and if its
            measured gain is the true one; without those that gain nothing.
        baselines: name → mean score of what has learned nothing.
        alternatives: name → mean score of what may be taken instead of a training.
        gain: what the pick, or without one the highest score, gains over the best of these; None
            if nothing is scored without training.
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
    alternatives: dict[str, float]
    gain: Gain | None
    costs: Costs
    margin: float | None
    unit: str
    lower_is_better: bool

    def mark(self, name: str) -> str:
        """What is decided about a method, in a word or two; empty for one that is just worse.

        Where several are true the first says most: what is taken, then what rules a method out,
        then what speaks for it.
        """
        if name == self.pick:
            return "take"
        if name in self.unlearned:
            return "not shown to learn"
        if name in self.diverged:
            return f"{self.diverged[name]} of {self.runs[name]} diverged"
        if name in self.untested:
            return "too few runs"
        if name == self.highest:
            return "highest"
        if name not in self.not_worse:
            return ""
        # By a wide margin a method may be worse for certain, and still cost no more than that.
        if self.differ(name, self.leader):
            return "within the margin"
        return "not worse"

    def differ(self, name: str, other: str | None) -> bool:
        """Whether two methods differ significantly: both are tested, and share no letter.

        Without another method (None) the answer is no.
        """
        if other is None:
            return False
        letters, letters_of_other = self.letters.get(name, ""), self.letters.get(other, "")
        if not letters or not letters_of_other:
            return False
        return not set(letters) & set(letters_of_other)

    @property
    def score_format(self) -> ScoreFormat:
        """How its scores are written; a tenth of the margin is the smallest difference shown.

        Where there is no margin, the one that is proposed to the user stands for it.
        """
        margin = self.margin
        if margin is None and self.scores:
            margin = self.margin_to_give
        sizes = [abs(score) for score in self.scores.values() if score]
        return ScoreFormat.of(self.unit, margin, smallest=min(sizes, default=None))

    @property
    def margin_to_give(self) -> float:
        """A margin to propose where there is no default: a tenth of what the scores span.

        Methods that have not learned are left out, unless none has. It is rounded to one digit.
        """
        learned = [score for name, score in self.scores.items() if name not in self.unlearned]
        scores = learned or list(self.scores.values())
        span = max(scores) - min(scores)
        return float(f"{span / 10:.0e}")
