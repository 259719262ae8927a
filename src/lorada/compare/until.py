"""``--until``: whose run is next, so that runs are spent where they decide.

After ``LEAST_RUNS`` runs of each method the leader is the one with the least expected loss. Two
runs often do not show that a method is erratic. Once the loss is small enough, no run follows. Else
a challenger gets the next, or the leader itself:

- the challenger is the method with the largest expected gain over the leader, E[max(0, its mean -
  the leader's)]: of these two methods alone, the expected loss of taking the leader;
- of the two, the one whose run lowers the variance of their difference the most. The mean of n runs
  has the variance v / n, so one more takes v / n - v / (n + 1) from it.

``v``, a method's variance between runs, is moderated by those of all, as in the expected loss.
All this follows from the scores that are stored, so a comparison that was killed goes on alike.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorada.compare.jobs.job import Job
from lorada.compare.read_results import read_comparison
from lorada.compare.spec import LEAST_RUNS
from lorada.decision.expected_loss import expected_losses
from lorada.decision.run_variances import Common, Runs, Scores
from lorada.decision.statistics import by_group


def next_method(
    scores: Mapping[str, Scores], until: float, open_: Collection[str], running: Sequence[str] = ()
) -> str | None:
    """The method whose run is next; None if no other is worth it, or none is left.

    Args:
        scores: method → runs × rows, higher is better; of two runs or more for some method.
        until: the expected loss, in the unit of the scores, that is small enough.
        open_: methods that have runs left.
        running: the method of each run that is on its way; a run of another challenger is next.
    """
    names = list(scores)
    losses = dict(zip(names, expected_losses(list(scores.values())), strict=True))
    leader = min(names, key=losses.__getitem__)
    if losses[leader] <= until:
        return None
    gains = {
        name: float(expected_losses([scores[leader], scores[name]])[0])
        for name in names
        if name in open_ and name != leader
    }
    waiting = [name for name in gains if name not in running] or list(gains)
    found = [max(waiting, key=gains.__getitem__)] if waiting else []
    found += [leader] if leader in open_ else []
    falls = _falls(scores, running)
    return max(found, key=falls.__getitem__, default=None)


def _falls(scores: Mapping[str, Scores], running: Sequence[str]) -> dict[str, float]:
    """By how much one more run lowers the variance of each method's mean."""
    common = Common.of(list(scores.values()))
    falls = {}
    for name, runs in scores.items():
        own = Runs.of(runs)
        between = own.between if common is None else common.moderate(own).between
        count = len(runs) + list(running).count(name)
        falls[name] = between / (count * (count + 1))
    return falls


@dataclass(frozen=True)
class Until:
    """Picks the jobs of a comparison with ``--until``, for ``run_queue``."""

    folder: Path  # of the comparison
    until: float  # the expected loss that is small enough
    # Name of the job of each final run → place of its candidate in the plan.
    runs: Mapping[str, int]

    def __call__(self, ready: Sequence[Job], running: Collection[str]) -> Job | None:
        """The next of the jobs that are ready: searches, then the first runs of each candidate."""
        found = read_comparison(self.folder)
        candidates = found.candidates
        on_its_way = [self.runs[name] for name in running if name in self.runs]
        began = {
            place: len(one.runs) + on_its_way.count(place) for place, one in enumerate(candidates)
        }
        for job in ready:
            if job.name not in self.runs or began[self.runs[job.name]] < LEAST_RUNS:
                return job
        # The choice between the others needs the first runs of all.
        few = any(len(candidates[place].runs) < LEAST_RUNS for place in on_its_way)
        if few or len(on_its_way) < len(running):
            return None
        scores = {str(place): one.scores for place, one in enumerate(candidates) if one.runs}
        if found.groups is not None:
            scores = {place: by_group(each, found.groups) for place, each in scores.items()}
        by_place = {str(self.runs[job.name]): job for job in reversed(ready)}
        if not any(len(each) > 1 for each in scores.values()):
            return ready[0] if ready else None
        chosen = next_method(scores, self.until, by_place, [*map(str, on_its_way)])
        return None if chosen is None else by_place[chosen]
