"""The whole report of a made-up comparison on disk."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from made_up_comparison import write_made_up

pytest.importorskip("altair", reason="needs the extra compare")

from lorada.report.comparison.read import read_comparison
from lorada.report.comparison.write import loss_curves, write_report

NAMES = ["report.html", "report.md", "report.csv", "report.tex", "report.json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_made_up(tmp_path_factory.mktemp("made") / "comparison", rows=60)


@pytest.fixture(scope="module")
def written(folder):
    return write_report(folder)


def test_the_report_is_written_in_five_forms_with_one_verdict(folder, written):
    assert sorted(written) == sorted(folder / name for name in NAMES)
    verdict = json.loads((folder / "report.json").read_text())["verdict"]
    assert f'<p class="verdict">{verdict}</p>' in (folder / "report.html").read_text()
    assert verdict in (folder / "report.md").read_text()


def test_every_link_of_the_page_leads_to_a_run_folder(folder, written):
    links = re.findall(r'<a href="([^"]+)"', written[0].read_text())
    runs = {path for path in folder.glob("runs/*/*/seed*") if path.is_dir()}
    assert {folder / unquote(link).rstrip("/") for link in links} == runs


def test_every_seed_that_ran_has_its_loss_curve(folder):
    results = read_comparison(folder)
    curves = loss_curves(results)
    for candidate in results.candidates:
        assert len(curves[candidate.label]) == len(candidate.runs)
        for run, curve in zip(candidate.runs, curves[candidate.label], strict=True):
            assert curve == [(one["step"], one["loss"]) for one in run.result["history"]]


def test_a_comparison_of_which_nothing_has_run_has_a_report(tmp_path, folder):
    (tmp_path / "plan.json").write_text((folder / "plan.json").read_text())
    written = write_report(tmp_path)
    assert [path.name for path in written] == NAMES
    assert 'class="chart"' not in written[0].read_text()


def test_a_folder_without_a_plan_is_refused_and_left_alone(tmp_path):
    with pytest.raises(ValueError, match="holds no comparison"):
        write_report(tmp_path)
    assert list(Path(tmp_path).iterdir()) == []
