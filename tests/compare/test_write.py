"""The whole report of a made-up comparison on disk."""

import csv
import io
import json
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib", reason="needs the extra compare")

from lorada.compare.plan import Candidate
from lorada.compare.report.page import (
    comma_separated,
    latex,
    markdown,
    write_report,
)
from lorada.compare.report.read import CandidateResult
from lorada.compare.report.summary import Baseline, Summary

HOSTILE = r"[x] a&b #{c}_d 5% ~y ^z \w ¬N <i> |"
# The same for LaTeX, as the first cell of a line.
ESCAPED = (
    r"{}[x] a\&b \#\{c\}\_d 5\% \textasciitilde{}y \textasciicircum{}z \textbackslash{}w "
    r"$\neg$N $<$i> $|$"
)
LORA = Candidate("lora", {}, trainable=9000, percent=0.5)
LINE = CandidateResult("lora", LORA, score=71.24, low=60.0, high=80.0)
NAMES = ["report.html", "report.md", "report.csv", "report.tex", "report.json"]


@pytest.fixture(scope="module")
def written(made_up_folder):
    return write_report(made_up_folder)[1]


def test_the_report_is_written_in_five_forms_with_one_verdict(
    made_up_folder, written, made_up_summary
):
    assert sorted(written) == sorted(made_up_folder / name for name in NAMES)
    stored = json.loads((made_up_folder / "report.json").read_text())
    assert stored == json.loads(json.dumps(made_up_summary.plain()))
    verdict = stored["verdict"]
    assert f'<p class="verdict">{verdict}</p>' in (made_up_folder / "report.html").read_text()
    assert verdict in (made_up_folder / "report.md").read_text()


def test_a_comparison_of_which_nothing_has_run_has_a_report(tmp_path, made_up_folder):
    for name in ("comparison.yaml", "plan.json"):
        (tmp_path / name).write_text((made_up_folder / name).read_text())
    _, written = write_report(tmp_path)
    assert [path.name for path in written] == NAMES
    page = written[0].read_text()
    assert 'class="chart"' not in page
    assert '<tr class="failed">\n<th scope="row"><bdi>boft</bdi>' in page


def test_markdown_begins_with_the_verdict_and_shows_every_part(made_up_summary):
    text = markdown(made_up_summary)
    title, _, verdict = text.splitlines()[:3]
    assert title == "# Comparison of methods: smollm2-135m, test.jsonl"
    assert verdict == f"**{made_up_summary.verdict}**"
    for part in (
        *made_up_summary.sentences,
        *made_up_summary.notes,
        *made_up_summary.commands.values(),
    ):
        assert part in text
    top = made_up_summary.lines[0]
    assert f"| {top.label} | {top.score:.1f} (" in text
    assert f"| {top.trainable:,} ({top.candidate.percent:.3f} %) |" in text
    assert "345,600 (0.257 %, above the budget) |" in text
    assert "| the commonest answer (answer: Yes) | " in text


def test_csv_has_each_field_of_each_line(made_up_summary):
    rows = list(csv.DictReader(io.StringIO(comma_separated(made_up_summary))))
    assert [row["label"] for row in rows] == [line.label for line in made_up_summary.lines]
    first = made_up_summary.lines[0]
    assert float(rows[0]["score"]) == first.score
    assert rows[0]["seeds"] == "1 2 3"
    assert rows[-1]["score"] == ""
    assert rows[0]["trainable"] == str(first.trainable)


def test_latex_has_a_row_for_each_candidate_and_each_score_without_training(made_up_summary):
    text = latex(made_up_summary)
    assert text.count(r" \\") == 1 + len(made_up_summary.lines) + len(made_up_summary.baselines)
    assert text.startswith(f"% {made_up_summary.verdict}\n")
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert rule in text


def test_signs_that_latex_and_markdown_read_are_printed_as_they_are():
    summary = Summary("one\ntwo <b>", lines=(replace(LINE, label=HOSTILE), LINE))
    text = latex(summary)
    assert text.startswith("% one two <b>\n")
    assert f"{ESCAPED} & 71.2 (60.0 to 80.0) & -- &" in text
    page = markdown(summary)
    assert "**one two &lt;b>**" in page
    assert r"^z \w ¬N &lt;i> \| | 71.2 (60.0 to 80.0) | – |" in page


def test_scores_that_are_losses_have_three_digits():
    line = replace(LINE, score=3.2144, low=3.1, high=3.3)
    base = Baseline("the model as it is", 3.5, 3.4, 3.6)
    text = markdown(Summary("v", metric="perplexity", lines=(line,), baselines=(base,)))
    assert "| candidate | loss (95 % interval) |" in text
    assert "| 3.214 (3.100 to 3.300) |" in text
    assert "| the model as it is | 3.500 (3.400 to 3.600) |" in text
    assert "Loss: nats, less is better, with" in text


def test_a_small_p_a_metric_of_its_own_and_the_size_compared_with_are_shown():
    line = replace(LINE, against="dora", p_against=1e-9, p_best=0.25, value=30.0, letter="ab")
    text = markdown(Summary("v", metric="matthews", lines=(line,)))
    assert (
        "| matthews | expected loss | group | p (against the reference) | p (against the highest) |"
        in text
    )
    assert "| 30.00 | – | ab | &lt; 0.001 | 0.250 |" in text
    lines = line, replace(line, value=None, against="dora (1%)")
    text = markdown(Summary("v", metric="matthews", lines=lines))
    assert "| ab | &lt; 0.001 (dora (1%)) |" in text
    assert "matthews" not in markdown(Summary("v", metric="matthews", lines=lines[1:]))
