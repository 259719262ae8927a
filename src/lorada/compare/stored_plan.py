"""What a comparison runs: each method at its sizes, as ``plan.json`` keeps it; and its files.

It is made once, so that a comparison that goes on runs the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from lorada.data.row_lengths import RowLengths
from lorada.data.scoring.chosen_metric import ChosenMetric
from lorada.methods.method import Settings
from lorada.runs.folder import KEPT_FILE
from lorada.runs.result import PREDICTIONS_FILE, RESULT_FILE
from lorada.support.error_messages import first_problem
from lorada.support.files import json_text, write_atomic
from lorada.support.row_sources import Form

# Files of a comparison, in its folder.
PLAN_FILE = "plan.json"
BASELINES_FILE = "baselines.json"  # scores without training
FAILURES_FILE = "failures.json"  # folder of a job that failed → the last line of its error
# Its folders; those of the searches and of the final runs have a folder for each candidate.
TRIALS = "trials"
BASELINES = "baselines"  # what is scored without training, by a job
RUNS = "runs"
CURVE = "curve"  # the folder of runs of the pick on fewer training rows
KEPT = "kept"  # the folder of the base's losses on rows that a model should still do
SEARCH_FILE = "search.json"  # in the folder of a search for a learning rate

STORED = ConfigDict(extra="forbid")  # of records that are read from a file
Record = TypeVar("Record")


@dataclass(frozen=True)
class Candidate:
    """A method at one size; what is not known of one that cannot be run is None."""

    __pydantic_config__ = STORED

    method: str  # as in ``Comparison.methods``
    # Each budget that leads to this size, as given → whether the size is above it, because the
    # method has no smaller one. Empty for the method's default size.
    budgets: dict[str, bool]
    parts: dict[str, Settings] = field(default_factory=dict)  # settings that give this size
    trainable: int | None = None  # trained parameters, without a task head
    percent: float | None = None  # the same in percent of the base's
    total: int | None = None  # parameters of the base
    mergeable: bool | None = None  # whether all of it can be merged into the base
    # The learning rate that a search begins with; without a search, that of the runs.
    default_rate: float | None = None
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
class TrainingRows:
    """Which rows the methods learn from."""

    __pydantic_config__ = STORED

    file: str  # the names of their files, without folders
    rows: int
    sha256: str


@dataclass(frozen=True)
class HeldOutRows:
    """Which rows the methods are scored on, of one name."""

    __pydantic_config__ = STORED

    rows: int
    sha256: str


@dataclass(frozen=True)
class KeptPlan:
    """Which rows a model should still do, by their names; or why there are none."""

    __pydantic_config__ = STORED

    rows: dict[str, HeldOutRows] = field(default_factory=dict)
    reason: str = ""
    form: Form = "prompt"  # of the training rows, and their classes: the head of each model
    labels: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return sum(rows.rows for rows in self.rows.values())


@dataclass(frozen=True)
class ComparisonPlan:
    """What a comparison runs."""

    __pydantic_config__ = STORED

    candidates: list[Candidate]  # in the order of the methods and budgets as given
    steps: int  # of every training
    batch: int  # rows of a device in a step
    dev_rows: int  # training rows that the search for learning rates sets aside
    train: TrainingRows
    held_out: dict[str, HeldOutRows]  # by the name of the rows
    overlap: int  # how many held-out rows are training rows too
    metric: ChosenMetric | None  # None for a benchmark, which has its own
    versions: dict[str, str]  # package → version
    hardware: dict[str, Any]  # of the machine that made the plan, as ``result.json`` has it
    train_lengths: RowLengths | None = None  # of the training rows; not of texts and benchmarks
    held_out_lengths: RowLengths | None = None  # of the rows to score, likewise
    kept: KeptPlan = field(default_factory=KeptPlan)

    @property
    def metric_name(self) -> str:
        """The name of the metric that answers are scored by; empty for a benchmark."""
        return "" if self.metric is None else self.metric.name

    @property
    def losses(self) -> list[str]:
        """What training rows and held-out rows lose to ``max_length``, a sentence for each."""
        lengths_by_rows = {"training": self.train_lengths, "held-out": self.held_out_lengths}
        sentences = []
        for rows, lengths in lengths_by_rows.items():
            if lengths is not None and lengths.losses:
                sentences.append(f"Of {lengths.rows:,} {rows} rows {lengths.summary}.")
        return sentences

    @property
    def runnable(self) -> list[Candidate]:
        """The candidates without a reason not to run."""
        return [candidate for candidate in self.candidates if candidate.reason is None]

    def save(self, folder: Path) -> None:
        """Write ``plan.json``."""
        write_atomic(folder / PLAN_FILE, json_text(asdict(self)) + "\n")


# Pydantic checks it where a record is read from a file.
PositiveRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Point:
    """What a trial of a search tries."""

    __pydantic_config__ = STORED

    choice: int  # which of several settings of the method, from 0
    rate: PositiveRate  # the learning rate
    map_factor: PositiveRate = 1.0  # by how much the rate of maps was changed on its own
    # That of maps beside other parts; None if it is not searched.
    map_rate: PositiveRate | None = None


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


RowScores = dict[str, list[FiniteFloat | None]]  # metric → of each row, None where it has none

# Names of baselines that have learned nothing, in ``baselines.json``. All others are what a user
# would take instead of a training.
AS_IT_IS = "as_it_is"  # the model without any training
COMMONEST = "commonest"  # the commonest answer of the training rows, given to every row


@dataclass(frozen=True)
class Untrained:
    """Scores without training, as ``baselines.json`` keeps them, or why there are none."""

    row_scores: RowScores = field(default_factory=dict)
    other_draws: list[RowScores] = field(default_factory=list)  # of examples in the prompt
    title: str = ""  # how reports call it; empty for one that they name by its key
    note: str = ""  # how the model was asked, in words: ``by the chat template, 3 draws of …``
    prompt_tokens: float | None = None  # of a prompt on average; None if nothing is asked
    answers: list[list[str]] = field(default_factory=list)  # texts of each draw, to be scored anew
    # Of the baseline that gives one answer to all rows, the commonest in the training rows: that
    # answer, as the form of the rows has it (a text, a class, labels, an index, a number).
    answer: Any = None
    reason: str = ""  # why there are no scores; empty where there are

    def tables_of(self, metric: str) -> list[list[float | None]]:
        """The scores of the rows by a metric, of each draw; empty if it has none."""
        draws = [self.row_scores, *self.other_draws]
        return [draw[metric] for draw in draws if metric in draw]

    def changed(self, change: Callable[[RowScores], RowScores]) -> "Untrained":
        """The same with other scores of each draw."""
        other_draws = [change(draw) for draw in self.other_draws]
        return replace(self, row_scores=change(self.row_scores), other_draws=other_draws)

    def stored(self) -> dict[str, Any]:
        """What a file has of it: what is known."""
        fields = asdict(self)
        return {name: value for name, value in fields.items() if value not in (None, "", [], {})}


def as_given(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Settings of parts as they are typed: ``lora.r=2 lora.lora_alpha=4``."""
    words: list[str] = []
    for part, settings in parts.items():
        words += [f"{part}.{name}={value}" for name, value in settings.items()]
    return " ".join(words)


def saved_plan(folder: Path) -> ComparisonPlan | None:
    """The plan in a folder; None if there is none."""
    return record_in(folder / PLAN_FILE, ComparisonPlan)


def record_in(path: Path, kind: type[Record]) -> Record | None:
    """The record that a JSON file of a comparison holds; None if there is no file.

    Raises:
        ValueError: if the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        record: Record = TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        raise damaged(path, ": ".join(filter(None, first_problem(error)))) from error
    return record


def mapping_in(path: Path, kind: Any = dict[str, Any]) -> Any:
    """The mapping that a JSON file of a comparison holds; an empty one if there is no file.

    Raises:
        ValueError: if the file is damaged.
    """
    return record_in(path, kind) or {}


def search_in(folder: Path) -> Search | None:
    """What the search in a folder has found; None if it is not finished.

    Raises:
        ValueError: if ``search.json`` is damaged.
    """
    return record_in(folder / SEARCH_FILE, Search)


def search_of(candidate: Candidate, folder: Path) -> Search | None:
    """What the search for a candidate's learning rate has found; None if it is not finished.

    Raises:
        ValueError: if ``search.json`` is damaged, or chose a setting that the plan does not have.
    """
    search_folder = folder / TRIALS / candidate.path
    search = search_in(search_folder)
    if search is None or search.choice is None:
        return search
    settings = len(candidate.choices) or 1
    if not 0 <= search.choice < settings:
        path = search_folder / SEARCH_FILE
        raise damaged(path, f"choice is {search.choice} of {settings} settings")
    return search


def settled(candidate: Candidate, search: Search | None) -> tuple[Candidate, str]:
    """A candidate of several settings with the sizes of the one that its search chose, and which.

    Of one setting, or where nothing is chosen, it is as it was, and the name is empty.
    """
    if search is None or search.choice is None or not candidate.choices:
        return candidate, ""
    chosen = candidate.choices[search.choice]
    # Its folders have the name of the method as it was given, with all settings to choose from.
    settled_candidate = replace(
        chosen, method=candidate.method, budgets=candidate.budgets, choices=candidate.choices
    )
    return settled_candidate, chosen.method


def damaged(path: Path, why: object) -> ValueError:
    """The error of a file that cannot be read."""
    return ValueError(
        f"{path} is damaged: put it back, or start again with --overwrite "
        f"({' '.join(str(why).split())})"
    )


def is_scored(run: Path) -> bool:
    """Whether a final run is trained and scored; what it keeps is measured last."""
    files = (PREDICTIONS_FILE, RESULT_FILE, KEPT_FILE)
    return all((run / name).is_file() for name in files)
