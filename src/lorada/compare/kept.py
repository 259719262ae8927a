"""What a comparison keeps of rows that a model should still do: their losses, of base and runs.

The base is scored on them once, in a job of its own, and each final run behind its held-out rows.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lorada.compare.jobs.job import SCORING, Job, report
from lorada.compare.spec import Comparison
from lorada.compare.stored_losses import KeptLosses
from lorada.compare.stored_plan import KEPT, ComparisonPlan, HeldOutRows, KeptPlan
from lorada.data.rows.kept_rows import KeptRows, Learned, kept_rows
from lorada.data.rows.row_content import content_of
from lorada.data.rows.rows import Rows
from lorada.data.tokenize import fit_context
from lorada.inference.load import Run, load_untrained
from lorada.inference.row_losses import count_scored, row_losses
from lorada.runs.folder import KEPT_FILE
from lorada.runs.recipe import Recipe
from lorada.support.row_sources import files_of
from lorada.training.inputs import Prepared
from lorada.training.models.loading import stretched


@dataclass(frozen=True)
class Keep:
    """Which rows a job scores for what is kept."""

    files: str | None  # as ``--keep`` names them
    columns: dict[str, str] | None  # the user's names of fields, of the training rows
    planned: KeptPlan

    @classmethod
    def of(cls, comparison: Comparison, plan: ComparisonPlan) -> "Keep":
        """That of a comparison."""
        return cls(comparison.keep, comparison.shared_recipe.columns, plan.kept)


def losses_of(run: Run, keep: Keep) -> KeptLosses:
    """The losses of a run, or of a model as it is, on the rows to keep.

    Raises:
        ValueError: if the files have other rows than at the beginning of the comparison.
    """
    if not keep.planned.rows:
        return KeptLosses(reason=keep.planned.reason)
    kept = read_again(run, keep)
    losses = {name: row_losses(run, rows) for name, rows in kept.items()}
    groups = {name: _groups_of(rows) for name, rows in kept.items()}
    return KeptLosses(losses, {name: own for name, own in groups.items() if any(own)})


def read_again(run: Run, keep: Keep) -> dict[str, Rows]:
    """The rows to keep, by their names, as they were at the beginning of the comparison.

    Raises:
        ValueError: if their files have other rows by now.
    """
    learned = Learned(run.form, run.labels, keep.columns, run.kind)
    rows_by_name = kept_rows(keep.files, learned, run.labels).by_name
    for name, rows in rows_by_name.items():
        if rows.fingerprint != keep.planned.rows[name].sha256:
            raise changed(name)
    return rows_by_name


def _groups_of(rows: Rows) -> list[str | None]:
    groups = [row.get("group") for row in rows.rows]
    return [None if group is None else str(group) for group in groups]


def changed(name: str) -> ValueError:
    """The error of rows to keep that are others than at the beginning."""
    return ValueError(
        f"--keep {name} has other rows than when the comparison began: put them back, or start "
        "again with --overwrite"
    )


def read_kept(
    comparison: Comparison, train: Rows, base: Prepared, own_classes: tuple[str, ...] | None
) -> KeptRows:
    """The rows to keep, checked so that each model of the comparison can be scored on them.

    Raises:
        FileNotFoundError: for a file that is missing.
        ValueError: for rows that the model cannot be scored on, and for training rows among them.
    """
    recipe = comparison.shared_recipe
    learned = Learned(train.form, train.labels, recipe.columns, base.kind)
    kept = kept_rows(comparison.keep, learned, own_classes)
    recipe = fit_context(recipe, stretched(base.config, recipe.rope_factor))
    train_contents = {content_of(row) for row in train.rows}
    for name, rows in kept.by_name.items():
        learned_too = sum(content_of(row) in train_contents for row in rows.rows)
        if learned_too and not comparison.allow_overlap:
            raise ValueError(
                f"{learned_too} of {len(rows.rows)} rows of --keep {name} are training rows too, "
                "so they are learned and not kept: remove them from one file, or pass "
                "--allow-overlap"
            )
        if not count_scored(recipe, rows, base.tokenizer, base.kind):
            raise ValueError(
                f"--keep {name} has no row with anything to score within "
                f"max_length={recipe.max_length}: raise it, or pass other rows"
            )
    return kept


def kept_plan(kept: KeptRows, train: Rows) -> KeptPlan:
    """What a plan keeps of the rows, to know them again, and of what is learned beside them."""
    return KeptPlan(_fingerprints(kept), kept.reason, train.form, list(train.labels))


def _fingerprints(kept: KeptRows) -> dict[str, HeldOutRows]:
    fingerprints = {}
    for name, rows in kept.by_name.items():
        fingerprints[name] = HeldOutRows(len(rows.rows), rows.fingerprint)
    return fingerprints


def refuse_changed(kept: KeptRows, planned: KeptPlan) -> None:
    """Refuse rows that are not those of a plan.

    Raises:
        ValueError: if rows of a name are others by now.
    """
    for name, rows in _fingerprints(kept).items():
        if planned.rows.get(name) != rows:
            raise changed(name)


def base_losses_jobs(comparison: Comparison, plan: ComparisonPlan, folder: Path) -> list[Job]:
    """The job that scores the base on the rows to keep; none where there are no such rows."""
    if not plan.kept.rows:
        return []
    place = folder / KEPT
    job = Job(
        name="kept rows of the model as it is",
        work=partial(
            score_base_on_kept, comparison.shared_recipe, Keep.of(comparison, plan), place
        ),
        folder=place,
        done=(place / KEPT_FILE).is_file,
        reads=paths_read(comparison),
        trainings=0.0,
    )
    return [job]


def score_base_on_kept(recipe: Recipe, keep: Keep, folder: Path) -> None:
    """Load the base of a recipe, score it on the rows to keep, and write ``kept.json``."""
    report(SCORING)
    base = load_untrained(recipe, keep.planned.form, tuple(keep.planned.labels))
    if base.drawn:
        reason = f"{recipe.model} has no {min(base.drawn)}, which is drawn anew at each load"
        KeptLosses(reason=reason).save(folder)
        return
    losses_of(base, keep).save(folder)


def paths_read(comparison: Comparison) -> tuple[Path, ...]:
    """The files and folders of the user's that a job reads."""
    shared_paths = [path for _, path in comparison.shared_recipe.local_paths()]
    kept_paths = [Path(name) for name in files_of(comparison.keep or "") if name]
    return (*shared_paths, *(path for path in kept_paths if path.exists()))
