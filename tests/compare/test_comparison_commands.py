"""The commands that the report of a comparison suggests."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from test_comparison_summary import alike, changed, results_of, with_result

from lorada.compare.report.read import read_comparison
from lorada.compare.report.summary import BESIDE, summarize


def test_the_commands_are_commands_of_lorada(made_up_summary):
    from lorada import cli

    commands = typer.main.get_command(cli.app).commands
    assert list(made_up_summary.commands) == ["train", "export", "serve", "explore", BESIDE]
    for command in made_up_summary.commands.values():
        program, name, *rest = shlex.split(command)
        assert program == "lorada"
        commands[name].make_context(name, rest).close()  # refuses unknown options
    recipe = Path(shlex.split(made_up_summary.commands["train"])[2])
    assert recipe.is_file()
    assert recipe.parts[-4] in made_up_summary.best


@pytest.mark.parametrize(
    ("form", "uses"),
    [("label", ["predict", "serve"]), ("score", ["predict", "serve"]), ("text", ["serve"])],
)
def test_the_commands_are_those_that_the_form_of_the_rows_allows(form, uses):
    summary = summarize(with_result(results_of(alike()), form=form))
    assert list(summary.commands) == ["train", "export", *uses, "explore", BESIDE]


def test_a_run_with_remote_code_is_trained_and_exported_with_it():
    results = with_result(results_of(alike()), recipe={"trust_remote_code": True})
    commands = summarize(results).commands
    assert all("--trust-remote-code" in commands[name] for name in ("train", "export", BESIDE))


def explored_beside(summary):
    """The folders of the runs, and the page, in the command for two runs."""
    _, _, first, second, *rest = shlex.split(summary.commands[BESIDE])
    return first, second, Path(rest[rest.index("--output") + 1])


def test_the_winner_is_explored_beside_the_best_of_another_method_at_one_seed(
    made_up_folder, tmp_path
):
    shutil.copytree(made_up_folder, tmp_path / "made up")
    results = read_comparison(tmp_path / "made up")
    by_label = {candidate.label: candidate for candidate in results.candidates}
    summary = summarize(results)
    order = [line.label for line in summary.lines]
    assert order[:3] == ["lorada_la (0.2%)", "lorada_la (0.1%)", "dora (0.1%)"]
    dora = by_label["dora (0.1%)"]  # the first seed that both have is 2
    mean = dora.scores.mean(axis=0)
    changed(results, dora.label, runs=dora.runs[1:], scores=np.stack([mean] * 2))
    first, second, page = explored_beside(summarize(results))
    assert first == str(results.folder / "runs/lorada_la/218910/seed2")
    assert second == str(results.folder / "runs/dora/103680/seed2")
    assert page == results.folder / "explore-lorada_la-218910-dora-103680-seed2.html"
    (Path(second) / "model").mkdir()  # a model that was trained itself has no adapter
    assert BESIDE not in summarize(results).commands
