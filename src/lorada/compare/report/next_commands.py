"""The commands that a report suggests: to use a candidate, to look at it, to go on."""

from pathlib import Path

from lorada.compare.read_results import CandidateResult
from lorada.runs.folder import trains_base
from lorada.support.files import as_typed
from lorada.support.outside_packages import package_options
from lorada.support.row_sources import HEADED


def commands_of(folder: Path, best: CandidateResult, *, trusted: bool = True) -> dict[str, str]:
    """The commands to train a candidate again, and to use the run of its first seed.

    Of one that is not ``trusted``, as no method was shown to learn, only those to look at it.
    """
    run = best.first_run
    run_folder = folder / run.folder
    name = f"my-{best.method}"
    # A file cannot allow remote code, so that the command has to.
    recipe, form = run.result.recipe, run.result.form
    allowed = ["--trust-remote-code"] if recipe is not None and recipe.trust_remote_code else []

    words: dict[str, list[object]] = {}
    if trusted:
        words["train"] = ["train", run_folder / "recipe.yaml", "--output", f"runs/{name}", *allowed]
        words["export"] = ["export", run_folder, name, *allowed]
    if form in HEADED:
        words["predict"] = ["predict", run_folder, "--text", "TEXT", *allowed]
    elif not trusted and form == "messages":
        words["chat"] = ["chat", run_folder, *allowed]
    elif not trusted:
        words["generate"] = ["generate", run_folder, "--prompt", "TEXT", *allowed]
    if trusted:
        words["serve"] = ["serve", run_folder, *allowed]
    if not trains_base(run_folder):  # which has no adapter to look into
        words["explore"] = ["explore", run_folder, "--text", "TEXT", *allowed]
    packages = package_options(run.result.method)
    return {purpose: as_typed("lorada", *packages, *command) for purpose, command in words.items()}


def resume_command(folder: Path) -> str:
    """The command that goes on with a comparison."""
    return as_typed("lorada", "compare", folder, "--resume")


def by_loss_command(folder: Path) -> str:
    """The command that writes the report by the loss."""
    return as_typed("lorada", "report", folder, "--metric", "loss")
