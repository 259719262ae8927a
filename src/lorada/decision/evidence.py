"""What a decision is made from: scores of each method, how sure they are, and who has learned."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from lorada.decision.costs import Costs, cheapest
from lorada.decision.expected_loss import Posterior, posterior
from lorada.decision.run_variances import TINY, Common, Scores
from lorada.decision.score_units import PERCENT
from lorada.decision.statistics import (
    POWER,
    holm,
    mean_score,
    paired_p,
    rows_needed,
    seeds_correlate,
)
from lorada.support.error_messages import needs_extra

LEARNED = 0.05  # level of the one-sided tests of all runs against scores without training
PART = 0.25  # of the best method's gain: one that gains less may have learned nothing
MORE_RUNS = 3  # of each method: what these would save is foretold
MOST_ROWS = 100_000  # that are named as what would show that a method has learned


@dataclass(frozen=True)
class ShownScale:
    """How scores, which are higher for the better one inside, are shown to users.

    Attributes:
        unit: such as ``%``; empty if it is not known.
        lower_is_better: whether users know the scores as losses or errors.
        zoom: a power of two by which all scores, and the margin, are multiplied inside.
    """

    unit: str
    lower_is_better: bool
    zoom: float

    @property
    def sign(self) -> int:
        """What turns a score into what is shown, and back again."""
        return -1 if self.lower_is_better else 1

    def score(self, score: float) -> float:
        """A score as it is shown: turned back if lower is better, and in its own size."""
        return (self.sign * score + 0.0) / self.zoom  # 0 is added as -0 would be shown

    def difference(self, difference: float) -> float:
        """A difference, such as an expected loss, as it is shown; a power of two rounds nothing."""
        return difference / self.zoom


@dataclass(frozen=True)
class Evidence:
    """What a decision is made from, by the name of the method; higher scores are better.

    Attributes:
        scores: seeds × rows (or groups of rows) of the runs that did not diverge.
        seeds: of these runs.
        baselines: name → draws × rows (or groups) of what has learned nothing; one draw of most.
        alternatives: the same of what may be taken instead of a training.
        runs: how many each method has, those that diverged too.
        diverged: how many of these diverged, if any did.
        costs: of each method.
        margin: that a cheaper method may cost; None where the unit of the scores has no default.
        margin_is_own: whether the user has given it.
        scale: how scores are shown.
        right_or_wrong: whether all scores are 0 or 100.
        row_count: how many rows are scored, in groups or not.
    """

    scores: dict[str, Scores]
    seeds: dict[str, tuple[object, ...]]
    baselines: dict[str, Scores]
    alternatives: dict[str, Scores]
    runs: dict[str, int]
    diverged: dict[str, int]
    costs: Costs
    margin: float | None
    margin_is_own: bool
    scale: ShownScale
    right_or_wrong: bool
    row_count: int

    @property
    def independent_rows(self) -> int:
        """How many rows, or groups of rows, are independent of each other."""
        return int(next(iter(self.scores.values())).shape[1])

    @cached_property
    def means(self) -> dict[str, float]:
        """The mean score of each method that has one."""
        return {name: float(table.mean()) for name, table in self.scores.items()}

    @cached_property
    def tested(self) -> list[str]:
        """The methods with enough runs for a test: two."""
        return [name for name, table in self.scores.items() if len(table) > 1]

    @cached_property
    def common(self) -> Common | None:
        """How much runs vary, estimated from the runs of all methods that are tested together."""
        return Common.of([self.scores[name] for name in self.tested])

    def highest(self, names: Collection[str]) -> str | None:
        """The method with the highest mean; of equal ones the cheapest."""
        if not names:
            return None
        top = max(self.means[name] for name in names)
        equal = [name for name in names if top - self.means[name] < TINY]
        return cheapest(self.costs, self.means, equal)

    def are_paired_by_seed(self, method: str, other: str) -> bool:
        """Whether two methods are compared run by run, each with that of the same seed.

        Only where one is the other and more, as ``lora+lmam`` and ``lora``: then runs with one seed
        start alike. They are pairs if their scores show that they also end alike.
        """
        parts, parts_of_other = _parts_in(method), _parts_in(other)
        one_extends_the_other = parts < parts_of_other or parts_of_other < parts
        if not one_extends_the_other or self.seeds[method] != self.seeds[other]:
            return False
        return seeds_correlate(self.scores[method], self.scores[other])

    def p_value(self, method: str, other: str) -> float:
        """The p-value of the difference between two methods, not corrected for other pairs."""
        by_seed = self.are_paired_by_seed(method, other)
        return paired_p(self.scores[method], self.scores[other], self.common, by_seed)

    def corrected_p_values(self, names: Sequence[str]) -> dict[frozenset[str], float]:
        """The p-value of each pair, corrected by Holm's method for all of them.

        Empty where there are too few rows for any difference to be significant.
        """
        pairs = list(combinations(names, 2))
        if not pairs or self.independent_rows < rows_needed(len(pairs)):
            return {}
        corrected = holm([self.p_value(method, other) for method, other in pairs])
        return dict(zip(map(frozenset, pairs), corrected, strict=True))

    @cached_property
    def unlearned(self) -> list[str]:
        """The methods that are not shown to have learned more than the scores without training.

        These are all methods if none is shown to have learned by tests that are corrected for their
        number. Otherwise a method is among them if it is not shown to have learned and gains but a
        small part of what the best one gains: few rows show hardly any method to be above the
        commonest answer, so the test alone would leave out methods that are almost the best.
        """
        names = list(self.scores)
        if self.baselines and not self._any_has_learned(names):
            return names
        # Without baselines a gain is the score itself.
        without_training = [float(row_scores.mean()) for row_scores in self.baselines.values()]
        best_without_training = max(without_training, default=0.0)
        gains = {name: mean - best_without_training for name, mean in self.means.items()}
        least_gain = PART * max(gains.values(), default=0.0)
        unlearned = []
        for name in names:
            if gains[name] < least_gain and not self._has_learned(name, LEARNED):
                unlearned.append(name)
        return unlearned

    def _any_has_learned(self, names: Sequence[str]) -> bool:
        """Whether any method has learned, by tests that are corrected for their number."""
        level = LEARNED / max(1, len(names))
        return any(self._has_learned(name, level) for name in names)

    def _has_learned(self, name: str, level: float) -> bool:
        """Whether a method is significantly above each of the scores without training."""
        for baseline in self.baselines.values():
            if not _is_above_zero(self.scores[name] - baseline.mean(axis=0), level):
                return False
        return True

    def rows_to_learn(self, name: str) -> int | None:
        """About how many rows would show that a method has learned, with 80 % power.

        None if it is no better than the best score without training, or by so little that this
        takes more rows than anybody has.
        """
        with needs_extra("compare"):
            from scipy.stats import norm

        baseline = max(self.baselines.values(), key=lambda row_scores: float(row_scores.mean()))
        gains = self.scores[name].mean(axis=0) - baseline.mean(axis=0)
        if gains.mean() < TINY:
            return None
        level = LEARNED / 2  # of the test of its mean, as in ``_is_above_zero``
        if len(self.unlearned) == len(self.scores):  # then the tests are corrected for all methods
            level /= len(self.scores)
        # A gain is shown with this power if it is so many standard errors above 0.
        standard_errors = float(norm.isf(level) + norm.isf(1 - POWER))
        independent = (standard_errors * float(gains.std(ddof=1) / gains.mean())) ** 2
        needed = independent * self.row_count / len(gains)  # a group counts as one of ``gains``
        if needed > MOST_ROWS:
            return None
        # What the rows at hand do not show takes one more at least.
        return max(self.row_count + 1, math.ceil(needed))

    @property
    def without_training(self) -> dict[str, Scores]:
        """The scores of baselines and of alternatives: what a training has to beat."""
        return self.baselines | self.alternatives

    @cached_property
    def fitted(self) -> list[str]:
        """The methods that the posterior is fitted to: those that learned, or all if none did."""
        # In one order, so that draws, and with them the choice, do not depend on the order given.
        learned = sorted(name for name in self.means if name not in self.unlearned)
        return learned or sorted(self.means)

    @cached_property
    def posterior(self) -> Posterior | None:
        """Draws of the true means of the fitted methods; None if none of them has two runs."""
        tables = [self.scores[name] for name in self.fitted]
        if all(len(table) < 2 for table in tables):
            return None
        paired_places = []  # of methods whose runs are pairs, in ``fitted``
        for a, b in combinations(range(len(self.fitted)), 2):
            if self.are_paired_by_seed(self.fitted[a], self.fitted[b]):
                paired_places.append((a, b))
        return posterior(tables, paired_places, MORE_RUNS)

    @cached_property
    def expected_losses(self) -> dict[str, float]:
        """What is expected to be lost by taking each method; empty if no method has two runs.

        Of a fitted method it comes from the posterior. Of one that has not learned it is what its
        mean is below the highest fitted one, and what that itself is expected to lose.
        """
        if self.posterior is None:
            return {}
        fitted_losses = dict(zip(self.fitted, map(float, self.posterior.losses), strict=True))
        highest_fitted = max(fitted_losses, key=self.means.__getitem__)
        losses = {}
        for name, mean in self.means.items():
            if name in fitted_losses:
                losses[name] = fitted_losses[name]
            else:
                losses[name] = fitted_losses[highest_fitted] + self.means[highest_fitted] - mean
        return losses

    @cached_property
    def is_share(self) -> bool:
        """Whether scores are a share of something, in percent, and not a change of it."""
        if self.scale.unit != PERCENT:
            return False
        shown = [self.scale.sign * table for table in self.scores.values()]
        lowest = min((float(table.min()) for table in shown), default=0.0)
        highest_mean = max((float(table.mean()) for table in shown), default=0.0)
        return lowest >= 0 and highest_mean <= 100


def _parts_in(method: str) -> set[str]:
    """The parts in a method's name, behind which may stand settings or a budget."""
    return set(method.split(" ")[0].split(":")[0].split("+"))


def _is_above_zero(gains: Scores, level: float) -> bool:
    """Whether the mean of a method's runs, or any one of them, is above scores without training.

    The tests are over rows: runs that differ much are no sign that nothing was learned. They
    share the level: one half is that of the mean, the other of all runs (Bonferroni).

    Args:
        gains: runs × rows, score less that without training.
        level: of all tests together.
    """
    if _lower_bound(gains.mean(axis=0), level / 2) > 0:
        return True
    level_of_run = level / 2 / len(gains)
    return any(_lower_bound(gains_of_run, level_of_run) > 0 for gains_of_run in gains)


def _lower_bound(gains: Scores, level: float) -> float:
    """The lower one-sided confidence bound of the mean over rows, of one run or a mean of runs."""
    low, _ = mean_score(gains[None]).interval(1 - 2 * level)
    return low
