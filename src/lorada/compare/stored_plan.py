"""What a comparison runs: each method at its sizes, as ``plan.json`` keeps it; and its files.

It is made once, so that a comparison that goes on runs the same.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from lorada.data.row_lengths import RowLengths
from lorada.support.error_messages import first_problem
from lorada.support.files import json_text, write_atomic

# Files and folders of a comparison.
PLAN_FILE, BASELINES_FILE, FAILURES_FILE = "plan.json", "baselines.json", "failures.json"
TRIALS, RUNS = "trials", "runs"
STORED = ConfigDict(extra="forbid")  # of records that are read from a file
SEARCH_FILE = "search.json"  # in the folder of a search for a learning rate


@dataclass(frozen=True)
class Candidate:
    """A method at one size; what is not known of one that cannot be run is None."""

    __pydantic_config__ = STORED

    method: str  # as in ``Comparison.methods``
    # Each budget that leads to this size, as given → whether the size is above it, because the
    # method has no smaller one. Empty for the method's default size.
    budgets: dict[str, bool]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)  # settings that give this size
    trainable: int | None = None  # trained parameters, without a task head
    percent: float | None = None  # the same in percent of the base's
    total: int | None = None  # parameters of the base
    mergeable: bool | None = None  # whether all of it can be merged into the base
    default_rate: float | None = None  # the method's own learning rate
    # That of maps beside other parts that train at ``default_rate``; None if ``method`` sets it, or
    # without such maps.
    map_rate: float | None = None
    settings_from: str = ""  # where its settings come from, in words
    reason: str | None = None  # why it cannot be run; None if it can
    # The method with each of its settings, if it has several, of which a search chooses one; the
    # rest is as in the one that trains the most.
    choices: "list[Candidate]" = field(default_factory=list)

    @property
    def path(self) -> str:
        """Its folder in ``trials`` and ``runs``."""
        return f"{quote(self.method, safe=' +,:=[]')}/{self.trainable}"  # slashes as %2F

    def run(self, seed: int) -> str:
        """The folder of its run with a seed, in that of the comparison."""
        return f"{RUNS}/{self.path}/seed{seed}"

    @property
    def name(self) -> str:
        """Its name in progress lines."""
        return f"{self.method} {self.trainable}"


@dataclass(frozen=True)
class ComparisonPlan:
    """What a comparison runs."""

    __pydantic_config__ = STORED

    candidates: list[Candidate]  # in the order of the methods and budgets as given
    steps: int  # of every training
    batch: int  # rows of a device in a step
    dev_rows: int  # training rows that the search for learning rates sets aside
    train: dict[str, Any]  # the training rows: ``file``, ``rows``, ``sha256``
    held_out: dict[str, dict[str, Any]]  # name of the rows to score → ``rows``, ``sha256``
    overlap: int  # how many held-out rows are training rows too
    metric: dict[str, str] | None  # of answers, ``name`` and ``reason``; None for a benchmark
    versions: dict[str, str]  # of the packages
    hardware: dict[str, Any]  # of the machine that made the plan
    train_lengths: RowLengths | None = None  # of the training rows; not of texts and benchmarks
    held_out_lengths: RowLengths | None = None  # of the rows to score, likewise

    @property
    def losses(self) -> list[str]:
        """What training rows and held-out rows lose to ``max_length``, a sentence for each."""
        known = {"training": self.train_lengths, "held-out": self.held_out_lengths}
        return [
            f"Of {lengths.rows:,} {what} rows {lengths.summary}."
            for what, lengths in known.items()
            if lengths is not None and lengths.losses
        ]

    @property
    def runnable(self) -> list[Candidate]:
        """The candidates without a reason not to run."""
        return [candidate for candidate in self.candidates if candidate.reason is None]

    def save(self, folder: Path) -> None:
        """Write ``plan.json``."""
        write_atomic(folder / PLAN_FILE, json_text(asdict(self)) + "\n")


# Checked where it is read from a file.
PositiveRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Point:
    """What a trial of a search tries."""

    __pydantic_config__ = STORED

    choice: int  # which of several settings of the method, from 0
    rate: PositiveRate  # the learning rate
    map_factor: PositiveRate = 1.0  # by how much the rate of maps was changed on its own
    map_rate: PositiveRate | None = (
        None  # that of maps beside other parts; None if it is not searched
    )


@dataclass(frozen=True, kw_only=True)
class Trial(Point):
    """A trial that has ended."""

    number: int  # from 0, in the order in which they were run
    loss: float | None  # on the rows set aside, nats; None if it diverged or failed
    guessing: float | None = None  # the loss of what has learned nothing, on the same rows
    failed: str | None = None  # the last line of the error of one that failed


@dataclass(frozen=True)
class Search:
    """What a search for a learning rate has found, as ``search.json`` keeps it.

    What was chosen is None if no trial has ended with a loss.
    """

    __pydantic_config__ = STORED

    default: PositiveRate  # the method's own learning rate
    trials: list[Trial]
    choice: int | None = None
    rate: PositiveRate | None = None
    map_factor: PositiveRate | None = None
    map_rate: PositiveRate | None = None


def as_given(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Settings of parts as they are typed: ``lora.r=2 lora.lora_alpha=4``."""
    return " ".join(f"{part}.{k}={v}" for part, given in parts.items() for k, v in given.items())


def saved_plan(folder: Path) -> ComparisonPlan | None:
    """The plan in a folder; None if there is none."""
    plan: ComparisonPlan | None = mapping_in(folder / PLAN_FILE, ComparisonPlan) or None
    return plan


def mapping_in(path: Path, kind: Any = dict[str, Any]) -> Any:
    """What is in a JSON file of a comparison, as ``kind``; an empty mapping if there is no file."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes()) if path.is_file() else {}
    except ValidationError as error:
        raise damaged(path, ": ".join(filter(None, first_problem(error)))) from error


def search_in(folder: Path) -> Search | None:
    """What the search in a folder has found; None if it is not finished.

    Raises:
        ValueError: if ``search.json`` is damaged.
    """
    search: Search | None = mapping_in(folder / SEARCH_FILE, Search) or None
    return search


def search_of(candidate: Candidate, folder: Path) -> Search | None:
    """What the search for a candidate's learning rate has found; None if it is not finished.

    Raises:
        ValueError: if ``search.json`` is damaged, or chose a setting that the plan does not have.
    """
    place = folder / TRIALS / candidate.path
    search = search_in(place)
    settings = len(candidate.choices) or 1
    if search is not None and search.choice is not None and not 0 <= search.choice < settings:
        raise damaged(place / SEARCH_FILE, f"choice is {search.choice} of {settings} settings")
    return search


def settled(candidate: Candidate, search: Search | None) -> tuple[Candidate, str]:
    """A candidate of several settings with the sizes of the one that its search chose, and which.

    Of one setting, or where nothing is chosen, it is as it was, and the name is empty.
    """
    if search is None or search.choice is None or not candidate.choices:
        return candidate, ""
    chosen = candidate.choices[search.choice]
    named = replace(
        chosen, method=candidate.method, budgets=candidate.budgets, choices=candidate.choices
    )
    return named, chosen.method


def damaged(path: Path, why: object) -> ValueError:
    """The error of a file that cannot be read."""
    return ValueError(
        f"{path} is damaged: put it back, or start again with --overwrite "
        f"({' '.join(str(why).split())})"
    )
