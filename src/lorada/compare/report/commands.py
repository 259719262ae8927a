"""The shell commands that a comparison's report gives for the candidate to take."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorada.compare.report.read import CandidateResult
from lorada.support.files import as_typed, file_name

CLASSIFIED = ("label", "score")  # forms of rows whose answer is a class or a number
BESIDE = "explore beside the next best"
Pair = tuple[Path, Path, Path]  # the winner's run, another, and where their page is written


def pair_of(folder: Path, best: CandidateResult, scored: Sequence[CandidateResult]) -> Pair | None:
    """The winner and the next best of another method, at the first seed that both have.

    None if there is no such candidate, or one of the two runs has no adapter.
    """
    other = next((one for one in scored if one.method != best.method), None)
    if other is None:
        return None
    mine, others = ({run.seed: folder / run.folder for run in one.runs} for one in (best, other))
    seed = min(mine.keys() & others.keys(), default=None)
    if seed is None or not (_has_adapter(mine[seed]) and _has_adapter(others[seed])):
        return None
    names = [f"{file_name(one.method)}-{one.trainable}" for one in (best, other)]
    return mine[seed], others[seed], folder / f"explore-{'-'.join(names)}-seed{seed}.html"


def commands_of(folder: Path, best: CandidateResult, pair: Pair | None) -> dict[str, str]:
    """The commands to train the winner again, and to use the run of its first seed."""
    run = min(best.runs, key=lambda run: run.seed)
    place, mine = folder / run.folder, f"my-{best.method}"
    # A file cannot allow remote code, so that the command has to.
    remote = (run.result.get("recipe") or {}).get("trust_remote_code")
    allowed = ["--trust-remote-code"] if remote else []
    found: dict[str, list[Any]] = {
        "train": ["train", place / "recipe.yaml", "--output", f"runs/{mine}", *allowed],
        "export": ["export", place, mine, *allowed],
    }
    if run.result.get("form") in CLASSIFIED:
        found["predict"] = ["predict", place, "--text", "TEXT", *allowed]
    found["serve"] = ["serve", place, *allowed]
    if _has_adapter(place):
        found["explore"] = ["explore", place, "--text", "TEXT", *allowed]
    if pair is not None:
        *runs, page = pair
        found[BESIDE] = [
            "explore", *runs, "--text", "TEXT", "--output", page, "--overwrite", *allowed
        ]  # fmt: skip
    return {name: as_typed("lorada", *words) for name, words in found.items()}


def by_loss(folder: Path) -> str:
    """The command that writes the report again by the loss."""
    return as_typed("lorada", "report", folder, "--metric", "loss")


def _has_adapter(run: Path) -> bool:
    """Whether a run has an adapter; a model that was trained itself has none."""
    return not any((run / name).exists() for name in ("model", "trained.safetensors"))
