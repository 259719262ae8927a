"""The shell commands that a comparison's report gives for the candidate to take."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorada.compare.report.read import CandidateResult, Results
from lorada.support.files import as_typed, file_name, json_text

CLASSIFIED = ("label", "score")  # forms of rows whose answer is a class or a number
BESIDE = "explore beside the next best"
LONGER = "compare again with more steps"
TIMES = 4  # how many times as many steps
# Settings of a comparison that are options of the command.
OPTIONS = ("held_out", "methods", "budgets", "seeds", "trials", "rates", "search", "against")
SHARED = ("model", "data", "task", "data_dir")  # the same, of the recipe that all runs share
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


def is_shown(one: Path, other: Path, page: Path) -> bool:
    """Whether the page is there and shows these runs, not some that were there before."""
    if not page.is_file():
        return False
    written = page.stat().st_mtime_ns
    return all((run / "result.json").stat().st_mtime_ns <= written for run in (one, other))


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


def longer(results: Results) -> dict[str, str]:
    """The command that compares the same with more steps, into a folder beside this one's."""
    asked, shared = results.asked, results.asked.get("recipe") or {}
    given = {**{name: shared.get(name) for name in SHARED}, **{n: asked.get(n) for n in OPTIONS}}
    if given["rates"]:  # they are as many as the trials
        del given["trials"]
    words = ["lorada", "compare"]
    for name, value in given.items():
        if value is not None and value != []:
            option = "budget" if name == "budgets" else name.replace("_", "-")
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [f"--{option}", text]
    words += [f"--{name.replace('_', '-')}" for name in ("with_text", "allow_overlap")
              if asked.get(name)]  # fmt: skip
    training = dict(shared.get("training") or {})
    steps = TIMES * int(results.plan.get("steps") or training.get("max_steps") or 0)
    training |= {"max_steps": steps} if steps else {}
    words += ["--output", str(results.folder.with_name(f"{results.folder.name}-longer"))]
    rest = {key: value for key, value in shared.items() if key not in (*SHARED, "training")}
    settings = {**rest, **{f"training.{key}": value for key, value in training.items()}}
    words += [
        f"{key}={value if isinstance(value, str) else ' '.join(json_text(value).split())}"
        for key, value in settings.items()
        if value is not None
    ]
    return {LONGER: as_typed(*words)}


def _has_adapter(run: Path) -> bool:
    """Whether a run has an adapter; a model that was trained itself has none."""
    return not any((run / name).exists() for name in ("model", "trained.safetensors"))
