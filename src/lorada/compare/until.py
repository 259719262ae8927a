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
from lorada.compare.read_results import Results, read_comparison
from lorada.compare.spec import LEAST_RUNS
from lorada.decision.expected_loss import expected_losses
from lorada.decision.run_variances import Common, Runs, Scores
from lorada.decision.statistics import by_group


def next_method(
    scores: Mapping[str, Scores],
    until: float,
    methods_left: Collection[str],
    running: Sequence[str] = (),
) -> str | None:
    """Choose between the leader and its challenger whose run is next; None if no run is.

    No run follows where the least expected loss is small enough, and where neither has runs left.

    Args:
        scores: method → runs × rows, higher is better; of two runs or more for some method.
        until: the expected loss, in the unit of the scores, that is small enough.
        methods_left: methods that have runs left.
        running: the method of each run that is on its way; a run of another challenger is next.
    """
    losses = dict(zip(scores, expected_losses(list(scores.values())), strict=True))
    leader = min(losses, key=losses.__getitem__)
    if losses[leader] <= until:
        return None
    candidates = []
    challenger = _challenger(scores, leader, methods_left, running)
    if challenger is not None:
        candidates.append(challenger)
    if leader in methods_left:
        candidates.append(leader)
    # ``max`` takes the first of equal ones: the challenger, of which less is known.
    variance_falls = _variance_falls(scores, running)
    return max(candidates, key=variance_falls.__getitem__, default=None)


def _challenger(
    scores: Mapping[str, Scores], leader: str, methods_left: Collection[str], running: Sequence[str]
) -> str | None:
    """The method with the largest expected gain over the leader; None if none has runs left.

    One of which no run is on its way comes before all others. The arguments are those of
    ``next_method``.
    """
    gains = {}
    for name in scores:
        if name in methods_left and name != leader:
            # Of these two alone, what is lost by taking the leader is what the other would gain.
            loss_of_leader, _ = expected_losses([scores[leader], scores[name]])
            gains[name] = float(loss_of_leader)
    not_running = [name for name in gains if name not in running]
    # If a run of each is on its way, any of them may get another.
    names = not_running or list(gains)
    return max(names, key=gains.__getitem__, default=None)


def _variance_falls(scores: Mapping[str, Scores], running: Sequence[str]) -> dict[str, float]:
    """Method → by how much one more run lowers the variance of its mean.

    Runs that are on their way count as finished: their scores will lower it before this one does.
    """
    common = Common.of(list(scores.values()))
    falls = {}
    for name, table in scores.items():
        variances = Runs.of(table)
        if common is not None:  # a few runs borrow how much runs vary from other methods
            variances = common.moderate(variances)
        between = variances.between
        count = len(table) + list(running).count(name)
        # between / count - between / (count + 1)
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
        """Pick the job to start next; None to wait for one that is running, or to end.

        Searches for a learning rate come first, then the first runs of each candidate. Once those
        are scored, the expected losses decide.

        Args:
            ready: jobs that can start.
            running: names of jobs that are on their way.
        """
        comparison = read_comparison(self.folder)
        running_places = [self.runs[name] for name in running if name in self.runs]
        runs_started = []  # of each candidate, those that are finished or on their way
        for place, candidate in enumerate(comparison.candidates):
            runs_started.append(len(candidate.runs) + running_places.count(place))
        for job in ready:
            is_search = job.name not in self.runs
            if is_search or runs_started[self.runs[job.name]] < LEAST_RUNS:
                return job

        # The choice between the others needs the first runs of all, and the end of all searches.
        runs_scored = [len(candidate.runs) for candidate in comparison.candidates]
        waits_for_runs = any(runs_scored[place] < LEAST_RUNS for place in running_places)
        waits_for_searches = len(running_places) < len(running)
        if waits_for_runs or waits_for_searches:
            return None
        scores = _scores_by_place(comparison)
        if not any(len(table) > 1 for table in scores.values()):  # then no loss is known
            return ready[0] if ready else None

        # Of several jobs of one candidate the first one is kept, as the last one to be put there.
        job_of_place = {str(self.runs[job.name]): job for job in reversed(ready)}
        running_names = [str(place) for place in running_places]
        place_of_next = next_method(scores, self.until, job_of_place, running_names)
        if place_of_next is None:
            return None
        return job_of_place[place_of_next]


def _scores_by_place(comparison: Results) -> dict[str, Scores]:
    """Place of each candidate that has runs, as a text → its scores, runs × rows (or groups)."""
    scores = {}
    for place, candidate in enumerate(comparison.candidates):
        if not candidate.runs:
            continue
        table = candidate.scores
        if comparison.groups is not None:
            table = by_group(table, comparison.groups)
        scores[str(place)] = table
    return scores
