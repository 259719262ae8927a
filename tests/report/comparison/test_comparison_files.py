"""A comparison's report as Markdown, CSV, LaTeX and JSON."""

import csv
import dataclasses
import io
import json
from dataclasses import replace

import pytest
from made_up_comparison import write_made_up

from lorada.report.comparison.files import comma_separated, latex, markdown, write_files
from lorada.report.comparison.read import read_comparison
from lorada.report.comparison.summarize import summarize
from lorada.report.comparison.summary import Baseline, Line, Summary

HOSTILE = r"[x] a&b #{c}_d 5% ~y ^z \w <i> |"
# The same for LaTeX, as the first cell of a line.
ESCAPED = (
    r"{}[x] a\&b \#\{c\}\_d 5\% \textasciitilde{}y \textasciicircum{}z \textbackslash{}w $<$i> |"
)
LINE = Line("lora", "lora", trainable=9000, percent=0.5, score=71.24, low=60.0, high=80.0)


@pytest.fixture(scope="module")
def summary(tmp_path_factory) -> Summary:
    folder = write_made_up(tmp_path_factory.mktemp("comparison") / "made up", rows=60)
    return summarize(read_comparison(folder))


def test_four_files_are_written(summary, tmp_path):
    paths = write_files(summary, tmp_path)
    assert [path.name for path in paths] == ["report.md", "report.csv", "report.tex", "report.json"]
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored == json.loads(json.dumps(dataclasses.asdict(summary)))


def test_markdown_begins_with_the_verdict_and_shows_every_part(summary):
    text = markdown(summary)
    title, _, verdict = text.splitlines()[:3]
    assert title == "# Comparison of methods: smollm2-135m, test.jsonl"
    assert verdict == f"**{summary.verdict}**"
    for part in (*summary.sentences, *summary.notes, *summary.commands.values()):
        assert part in text
    top = summary.lines[0]
    assert f"| {top.label} | {top.trainable:,} ({top.percent:.3g}%) | {top.score:.1f} (" in text
    assert "345,600 (0.257%)* |" in text
    assert "- the commonest answer (Yes): " in text


def test_csv_has_each_field_of_each_line(summary):
    rows = list(csv.DictReader(io.StringIO(comma_separated(summary))))
    assert list(rows[0]) == [field.name for field in dataclasses.fields(Line)]
    assert [row["label"] for row in rows] == [line.label for line in summary.lines]
    first = summary.lines[0]
    assert float(rows[0]["score"]) == first.score
    assert rows[0]["seeds"] == "1 2 3"
    assert rows[-1]["score"] == ""
    assert comma_separated(summary).splitlines()[1].split(",")[5] == str(first.trainable)


def test_latex_has_a_row_for_each_scored_line(summary):
    text = latex(summary)
    scored = [line for line in summary.lines if line.score is not None]
    assert text.count(r" \\") == 1 + len(scored)
    assert text.startswith(f"% {summary.verdict}\n")
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert rule in text


def test_signs_that_latex_and_markdown_read_are_printed_as_they_are():
    summary = Summary("one\ntwo <b>", lines=(replace(LINE, label=HOSTILE), LINE))
    text = latex(summary)
    assert text.startswith("% one two <b>\n")
    assert f"{ESCAPED} & 9,000 (0.5\\%) & 71.2 (60.0 to 80.0) & -- &" in text
    page = markdown(summary)
    assert "**one two &lt;b>**" in page
    assert r"^z \w &lt;i> \| | 9,000 (0.5%) | 71.2 (60.0 to 80.0) | – |" in page


def test_scores_that_are_losses_have_three_digits():
    line = replace(LINE, score=-3.2144, low=-3.3, high=-3.1)
    base = Baseline("the model as it is", -3.5, -3.6, -3.4)
    text = markdown(Summary("v", metric="perplexity", lines=(line,), baselines=(base,)))
    assert "| -3.214 (-3.300 to -3.100) |" in text
    assert "- the model as it is: -3.500 (-3.600 to -3.400)" in text
    assert "Score: minus the loss in nats, with" in text


def test_a_small_p_and_a_metric_of_its_own_are_shown():
    line = replace(LINE, against="dora", p_against=1e-9, p_best=0.25, value=30.0, letter="ab")
    text = markdown(Summary("v", metric="matthews", lines=(line,)))
    assert "| group | p against | p to best | matthews |" in text
    assert "| ab | &lt; 0.001 (dora) | 0.250 | 30.0 |" in text


def test_a_comparison_without_scores_has_all_files(tmp_path):
    lines = (Line("boft", "boft", reason="it does not fit"),)
    summary = Summary("No run.", lines=lines, baselines=(Baseline("b", reason="r"),), notes=("n",))
    write_files(summary, tmp_path)
    assert "- b: no score, because r" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.csv").read_text().endswith(",it does not fit\n")
    assert r"\begin{tabular}" in (tmp_path / "report.tex").read_text()
