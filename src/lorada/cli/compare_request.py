"""What ``lorada compare`` was asked for, and the comparison that this describes."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from lorada.cli.shared import errors, importing, note, prints_to_stderr, suggest
from lorada.cli.train_commands import check_inputs
from lorada.support.error_messages import FREE_AND_RESUME, full_disk_in_one_line
from lorada.support.in_words import counted, duration


@dataclass(frozen=True)
class TimeBudget:
    """What the user says of the time of a comparison and of its price."""

    hours: float | None  # None for as long as it takes
    price: float | None  # of an hour, in any currency; None if costs are not to be said
    began_at: float  # when the command began, by ``time.monotonic``
    gpus_per_job: float
    cluster: str | None

    def __post_init__(self) -> None:
        """Refuse numbers that are no time or no price."""
        for option, value in (("--hours", self.hours), ("--price", self.price)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{option} {value:g}: pass a number above 0")

    @property
    def gpus_here(self) -> float:
        """The cards of a job on this machine, where its time is measured.

        This machine may be outside of the cluster that runs the jobs.
        """
        return self.gpus_per_job if self.cluster is None else min(1.0, self.gpus_per_job)

    def costs_of(self, seconds: float) -> str:
        """What a time costs, to stand behind it; empty without a price."""
        if self.price is None:
            return ""
        return f" ({seconds / 3600 * self.price:.2f} at {self.price:g} an hour)"


@dataclass(frozen=True)
class CompareRequest:
    """The options of one command, with which one comparison or several are made."""

    folder: Path  # of the comparison
    pairs: list[str]  # settings ``key=value`` of the trainings
    recipe_options: dict[str, Any]  # options that a recipe has; None for one that is not given
    comparison_options: dict[str, Any]  # options of the comparison itself, likewise
    time_budget: TimeBudget
    pool: Callable[[], Any]  # makes what runs the jobs: nothing is started for what is refused
    folder_is_output: bool  # whether --output named the folder, as for a new comparison
    resume: bool
    overwrite: bool
    dry_run: bool
    as_json: bool

    def __post_init__(self) -> None:
        """Refuse a curve within a time that does not count its trainings."""
        if self.comparison_options["curve"] and self.time_budget.hours is not None:
            raise ValueError(
                "--curve trains after the decision, which --hours does not count: leave it out, "
                "and add it later with --resume --curve"
            )

    @property
    def is_new(self) -> bool:
        """Whether a comparison begins: all is given that it takes, and none is in the folder.

        A command that has all of it may be given with --resume to each of several machines: the
        first one begins, and the others find its comparison in the folder.
        """
        from lorada.compare.spec import SPEC_FILE

        if not self.resume:
            return True
        can_begin = self.folder_is_output and self.comparison_options["methods"] is not None
        return can_begin and not (self.folder / SPEC_FILE).is_file()

    @property
    def trials_are_fixed(self) -> bool:
        """Whether the number of rates that a search tries may not be changed to save time."""
        options = self.comparison_options
        rates_are_given = options["trials"] is not None or options["rates"] is not None
        return rates_are_given or not self.is_new

    def limit(self) -> Any:
        """The ``TimeLimit`` of the jobs; None if there is none."""
        if self.time_budget.hours is None:
            return None
        with importing():
            from lorada.compare.hours import HOUR, TimeLimit

        ends_at = self.time_budget.began_at + self.time_budget.hours * HOUR
        return TimeLimit(
            self.time_budget.hours, ends_at, self.trials_are_fixed, self.time_budget.gpus_here
        )

    def comparison(self) -> Any:
        """The ``Comparison`` that the options describe, or the one in the folder to go on with."""
        if self.is_new:
            return self._new_comparison()
        return self._saved_comparison()

    def _new_comparison(self) -> Any:
        """The comparison of the options; most mistakes are found before torch is loaded."""
        from lorada.compare import spec
        from lorada.data.files.read_rows import HELD_OUT
        from lorada.training.load_recipe import read_recipe

        options = {**self.comparison_options, "hours": self.time_budget.hours}
        draft = read_recipe(None, self.pairs, {**self.recipe_options, **spec.FIXED})
        # A first, unchecked comparison knows the held-out rows, so that missing files are seen
        # early.
        first = spec.comparison_of(draft.recipe, options)
        check_inputs(draft.recipe, first.held_out, HELD_OUT, resumed=False, keep=first.keep)
        with importing():  # settings are checked against PEFT's and transformers' classes
            return spec.comparison_of(draft.complete(), options)

    def _saved_comparison(self) -> Any:
        """The comparison in the folder; refuses options that say something else than it does."""
        from lorada.compare import spec
        from lorada.data.files.read_rows import HELD_OUT

        saved = spec.saved_comparison(self.folder)
        draft = spec.asked_again(saved, self.pairs, self.recipe_options)
        check_inputs(draft.recipe, saved.held_out, HELD_OUT, resumed=True, keep=saved.keep)
        with importing():
            return spec.resumed_comparison(
                self.folder, saved, draft.complete(), self.comparison_options
            )


def target_folder(folder: str | None, output: str | None, *, resume: bool, overwrite: bool) -> Path:
    """The folder of a comparison: a new one is named by --output, an old one by either word.

    One that may not be written to is refused.
    """
    from lorada.compare.spec import refuse_taken

    if folder is not None and not resume:
        raise ValueError(f"{folder}: a folder is for --resume; pass --output FOLDER for a new one")
    if folder is None and output is None:
        raise ValueError("no folder for the comparison: pass --output FOLDER, or FOLDER --resume")
    target = Path(str(folder or output))
    refuse_taken(target, resume=resume, overwrite=overwrite)
    return target


def _say_time(request: CompareRequest, did_not_fit: int) -> None:
    """Say what the command has cost, and how many jobs the time did not suffice for."""
    seconds = time.monotonic() - request.time_budget.began_at
    costs = request.time_budget.costs_of(seconds)
    if costs:
        note(f"took {duration(seconds)}{costs}")
    if did_not_fit:
        note(f"not begun, as the time did not suffice: {counted(did_not_fit, 'job')}")
        hours = f"{request.time_budget.hours:g}"
        suggest("compare", request.folder, "--resume", "--hours", hours, on=errors)


def run_and_show(
    request: CompareRequest, run: Callable[..., Any], show: Callable[..., None]
) -> Any:
    """Run one comparison or several, and print their report, or how to go on if jobs are left.

    Args:
        request: the options of the command.
        run: ``compare`` or ``compare_models``, with what it compares.
        show: prints a summary and the files of its report.

    Returns:
        The summary; None while jobs are left.

    Raises:
        typer.Exit: with code 2 if a job has failed, after all that is printed.
    """
    folder = request.folder
    try:
        with full_disk_in_one_line(folder, FREE_AND_RESUME), prints_to_stderr(request.as_json):
            compared = run(
                folder, request.pool, overwrite=request.overwrite, limit=request.limit(),
                report=note,
            )  # fmt: skip
    except KeyboardInterrupt:
        note("stopped and saved")
        suggest("compare", folder, "--resume", on=errors)
        raise
    for job, error in compared.failures.items():
        note(f"failed: {job}: {error}")
    if compared.summary is None:
        jobs = counted(compared.left, "job")
        note(f"left to other commands, the last of which writes the report: {jobs}")
        suggest("compare", folder, "--resume", on=errors)
    else:
        show(compared.summary, compared.reports, as_json=request.as_json)
    _say_time(request, compared.did_not_fit)
    if compared.failures:
        raise typer.Exit(2)
    return compared.summary
