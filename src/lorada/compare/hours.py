"""``--hours``: what of a comparison fits into a time, and which of its jobs still end in it.

Before anything is trained, a few steps of each candidate are measured. If all runs do not fit, then
runs are left out first, down to two of each candidate, then rates of the searches, down to two,
then the second run of each. What does not fit even so is refused.

Only the number of rates is settled then. Which runs there are follows while the comparison runs:
the first run of each candidate comes before the second of any, and a job that would not end in the
time is not begun. How long jobs really take corrects what was measured before.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorada.compare.forecast import StepCosts
from lorada.compare.jobs.job import Job, Outcome
from lorada.compare.jobs.queue import Ended, Pick, Pool, Report, first_of, run_queue
from lorada.compare.spec import Comparison
from lorada.compare.stored_plan import TRIALS, Candidate, ComparisonPlan
from lorada.compare.trainings import trials_of
from lorada.support.in_words import duration

HOUR = 3600.0  # seconds
# Of the time, for what comes after the last run: scores of the model as it is, and of the pick at
# smaller scales of its adapter.
RESERVE = 0.05
LEAST_TRIALS = 2  # one rate is no search
# Of each candidate, below which rates of the searches are left out before runs: a difference needs
# two runs to be tested.
RUNS_BEFORE_TRIALS = 2

# The order in which jobs are begun. The n-th run of a candidate has the rank n + 1 from n = 2 on.
SEARCH_RANK = 0
FIRST_RUN_RANK = 1
BASELINE_RANK = 2


@dataclass(frozen=True)
class TimeLimit:
    """The time that a command on a comparison may take.

    Attributes:
        hours: as they were asked for.
        ends_at: when they end, by ``time.monotonic``.
        trials_are_fixed: whether the user said how many rates are tried.
        gpus_per_job: how many cards of this machine a job sees, or the share of one.
    """

    hours: float
    ends_at: float
    trials_are_fixed: bool
    gpus_per_job: float = 1.0

    @property
    def seconds_left(self) -> float:
        """The time that is left for jobs."""
        return self.ends_at - RESERVE * self.hours * HOUR - time.monotonic()


@dataclass(frozen=True)
class MeasuredComparison:
    """A comparison, and what an average step of each of its candidates takes."""

    comparison: Comparison
    plan: ComparisonPlan
    costs: Mapping[str, StepCosts]  # by the path of the candidate

    @property
    def candidates(self) -> list[Candidate]:
        """Those that can be run."""
        return [one for one in self.plan.runnable if one.path in self.costs]

    def with_trials(self, trials: int) -> "MeasuredComparison":
        """The same comparison, in which each search tries so many rates."""
        changed = self.comparison.model_copy(update={"trials": trials})
        return replace(self, comparison=changed)

    def run_seconds(self, candidate: Candidate) -> float:
        """What one training of a candidate takes."""
        return self.costs[candidate.path].training_seconds(self.plan.steps)

    def search_seconds(self, candidate: Candidate, trials: int) -> float:
        """What the search of a candidate usually takes, if so many rates are tried."""
        changed = self.with_trials(trials).comparison
        count = trials_of(changed, self.plan, candidate).usual
        return count * self.run_seconds(candidate)


def fitting_trials(measured: Sequence[MeasuredComparison], limit: TimeLimit, slots: int) -> int:
    """How many rates each search tries, so that what matters most fits into the time.

    Args:
        measured: the comparisons that share the time, of the same seeds and trials.
        limit: the time.
        slots: how many jobs run at once.

    Raises:
        ValueError: if not even a search of the fewest rates and one run of each candidate fit; it
            names the hours that they take.
    """
    first = measured[0].comparison
    least_trials = first.trials
    if not limit.trials_are_fixed:
        least_trials = min(first.trials, LEAST_TRIALS)
    runs = min(RUNS_BEFORE_TRIALS, len(first.seeds))
    for trials in range(first.trials, least_trials - 1, -1):
        if whole_seconds(measured, trials, runs, slots) <= limit.seconds_left:
            return trials
    needed = whole_seconds(measured, least_trials, 1, slots)
    if needed <= limit.seconds_left:
        return least_trials
    # The reserve, and a tenth for what is measured too low.
    hours = 1.1 * needed / HOUR / (1 - RESERVE)
    raise ValueError(
        f"--hours {limit.hours:g}: one run of each method with its search takes about "
        f"{duration(needed)}: pass --hours {max(0.01, round(hours, 2)):g}, or fewer methods or "
        "steps"
    )


def whole_seconds(
    measured: Sequence[MeasuredComparison], trials: int, runs: int, slots: int
) -> float:
    """What all searches and so many runs of each candidate take.

    It is Graham's bound for jobs of which some wait for others, none for one of another candidate.
    """
    total = longest = 0.0
    for comparison in measured:
        for candidate in comparison.candidates:
            search = comparison.search_seconds(candidate, trials)
            run = comparison.run_seconds(candidate)
            total += search + runs * run
            longest = max(longest, search + run)
    return total / slots + longest * (1 - 1 / slots)


@dataclass(frozen=True)
class JobTime:
    """What a job takes by the measured steps, and when its turn is."""

    seconds: float
    rank: int
    after: str = ""  # the name of the job that comes before it; empty for none


def job_times(
    measured: MeasuredComparison, folder: Path, jobs: Sequence[Job]
) -> dict[str, JobTime]:
    """The time of each job of a comparison, by its name.

    Args:
        measured: the comparison; its number of trials is the one that fits.
        folder: of the comparison.
        jobs: of it; those that are neither searches nor runs score what is not trained.
    """
    time_of_folder = {}
    runs = []
    for candidate in measured.candidates:
        search = measured.search_seconds(candidate, measured.comparison.trials)
        run = measured.run_seconds(candidate)
        runs.append(run)
        time_of_folder[folder / TRIALS / candidate.path] = JobTime(search, SEARCH_RANK)
        for place, seed in enumerate(measured.comparison.seeds):
            rank = FIRST_RUN_RANK if place == 0 else BASELINE_RANK + place
            time_of_folder[folder / candidate.run(seed)] = JobTime(run, rank)
    # What scoring without a training takes is not measured: it is taken for the longest run.
    without_training = JobTime(max(runs), BASELINE_RANK)
    times = {}
    for job in jobs:
        times[job.name] = replace(time_of_folder.get(job.folder, without_training), after=job.after)
    return times


class WithinHours:
    """Picks jobs that end in a time, for ``run_queue``; others are not begun.

    Args:
        limit: the time.
        times: of each job of the queue, by its name.
        slots: how many jobs run at once.
        pick: chooses among the jobs that end in the time, once each candidate has its first run.

    Attributes:
        left_out: the names of the jobs that were ready and did not fit.
    """

    def __init__(
        self, limit: TimeLimit, times: Mapping[str, JobTime], slots: int, pick: Pick = first_of
    ) -> None:
        self._limit = limit
        self._times = times
        self._slots = slots
        self._pick = pick
        self._started_at: dict[str, float] = {}
        self._expected: dict[bool, float] = {}  # whether searches → seconds of those that ended
        self._taken: dict[bool, float] = {}  # likewise, what they took
        self.left_out: set[str] = set()

    def run(
        self, jobs: Sequence[Job], pool: Pool, *, report: Report, ended: Ended
    ) -> dict[str, Outcome]:
        """Run jobs as ``run_queue`` does, as far as they end in the time."""

        def note_and_end(job: Job, outcome: Outcome) -> None:
            self.note_end(job, outcome)
            ended(job, outcome)

        return run_queue(jobs, pool, report=report, pick=self.pick, ended=note_and_end)

    def pick(self, ready: Sequence[Job], running: Collection[str]) -> Job | None:
        """The next job; None if none fits, or if the rule waits for what is running."""
        seconds_left = self._limit.seconds_left
        fitting = [job for job in ready if self._needed(job, ready, running) <= seconds_left]
        self.left_out = {job.name for job in ready} - {job.name for job in fitting}
        # The longest first: begun late, it would not fit, and a model or method would have no run.
        fitting.sort(key=lambda job: (self._times[job.name].rank, -self._times[job.name].seconds))
        if fitting and self._times[fitting[0].name].rank <= FIRST_RUN_RANK:
            job: Job | None = fitting[0]
        else:
            job = self._pick(fitting, running)
        if job is not None:
            self._started_at[job.name] = time.monotonic()
        return job

    def note_end(self, job: Job, outcome: Outcome) -> None:
        """Learn from a job that has ended how long jobs of its kind really take."""
        started_at = self._started_at.pop(job.name, None)
        if started_at is None or outcome.status != "done":
            return
        is_search = self._is_search(job.name)
        expected = self._times[job.name].seconds
        taken = time.monotonic() - started_at
        self._expected[is_search] = self._expected.get(is_search, 0.0) + expected
        self._taken[is_search] = self._taken.get(is_search, 0.0) + taken

    def did_not_fit(self, jobs: Sequence[Job]) -> int:
        """How many jobs were not begun for want of time, with those that wait for them."""
        count = 0
        for job in jobs:
            if job.name in self.left_out or job.after in self.left_out:
                count += 1
        return count

    def seconds_of(self, name: str) -> float:
        """What a job takes by the measured steps and the jobs of its kind that have ended."""
        expected = self._times[name].seconds
        is_search = self._is_search(name)
        if not self._expected.get(is_search):
            return expected
        return expected * self._taken[is_search] / self._expected[is_search]

    def _is_search(self, name: str) -> bool:
        return self._times[name].rank == SEARCH_RANK

    def _needed(self, job: Job, ready: Sequence[Job], running: Collection[str]) -> float:
        """The time that must be left for a job to begin.

        A search is of no use without a run. So it needs the time of its candidate's first run too,
        and of those first runs that other searches have made ready, or will.
        """
        seconds = self.seconds_of(job.name)
        if not self._is_search(job.name):
            return seconds
        ready_names = {other.name for other in ready}
        for name, job_time in self._times.items():
            if job_time.rank != FIRST_RUN_RANK:
                continue
            if job_time.after == job.name:
                seconds += self.seconds_of(name)
            elif name in ready_names or job_time.after in running:
                seconds += self.seconds_of(name) / self._slots
        return seconds
