"""The report of a comparison as a page and as JSON; the page in a headless Chromium too."""

import html
import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import page_browser
import pytest
from made_up_comparison import renamed, write_made_up
from page_browser import needs_chromium, widest

pytest.importorskip("matplotlib", reason="needs the extra compare")

from lorada.cli.compare_commands import _show_report
from lorada.compare.read_results import CandidateResult
from lorada.compare.report.baseline_scores import Baseline
from lorada.compare.report.candidate_lines import CandidateLine, Decided, Measured
from lorada.compare.report.candidate_tables import cost_table, learning_table, score_table
from lorada.compare.report.retention_summary import RetentionSummary
from lorada.compare.report.row_disagreements import Disagreement
from lorada.compare.report.shown_rows import ShownRows
from lorada.compare.report.summarize_comparison import Summary
from lorada.compare.report.write_report import page as comparison_page
from lorada.compare.report.write_report import write_report
from lorada.compare.row_findings import RowFinding
from lorada.compare.stored_plan import Candidate
from lorada.support.in_words import duration

HOSTILE = (
    "<img src=x onerror='window.hacked=1'>",
    "</script><script>window.hacked=1</script>",
    "\"><svg onload=window.hacked=1>",
    "{{ 7 * 7 }} ${7 * 7} &lt;b&gt; $_^$",
    "\u202egnisrever",
    "x" * 300,
)  # fmt: skip


FINDING = RowFinding(
    HOSTILE[0], 1, HOSTILE[1], HOSTILE[2], HOSTILE[3], 0.9, 9, 10, None, 0.0, ("unstable",)
)  # fmt: skip


browser, opened, page_of = page_browser.browser, page_browser.opened, comparison_page


def test_the_page_names_its_language_has_headings_in_order_and_no_script(made_up_summary):
    page = comparison_page(made_up_summary)
    assert '<html lang="en">' in page
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    # The scores, gain over retention and the costs, for wide and for narrow screens.
    assert len(re.findall('role="img" aria-label=".{20,}"><svg', page)) == 6
    assert "<script" not in page
    ids = re.findall(' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.more
@needs_chromium
def test_hostile_names_and_texts_stay_text(opened, made_up_summary):
    everywhere, old = " ".join(HOSTILE), made_up_summary.lines
    lines = []
    for line, name in zip(old, HOSTILE, strict=False):
        hostile = renamed(line, name, parts={"p": {"k": name}})
        lines.append(replace(hostile, result=replace(hostile.result, reason=name)))
    summary = replace(
        made_up_summary, lines=tuple(lines), verdict=everywhere, sentences=HOSTILE,
        model=HOSTILE[1], task=HOSTILE[0], commands={"train": everywhere}, hardware=HOSTILE[0],
        versions={HOSTILE[1]: HOSTILE[2]},
        baselines=tuple(Baseline(name, 50.0 + place, 40.0, 60.0) for place, name in
                        enumerate(HOSTILE)),
        shown_rows=ShownRows(
            wrong=(FINDING,), unstable=(FINDING,), no_texts=HOSTILE[1],
            divided=(Disagreement(HOSTILE[0], 1, HOSTILE[:3], HOSTILE[3:], *HOSTILE[:2]),),
        ),
    )  # fmt: skip
    page = opened(summary, viewport={"width": 320, "height": 640})
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == page.locator("img").count() == 0
    names = page.locator("table").first.locator("tbody th > bdi").all_text_contents()
    assert set(names) >= set(HOSTILE)
    assert page.locator(".verdict").text_content() == everywhere
    assert page.locator("pre.command").text_content() == everywhere
    assert widest(page) == 320  # on a narrow page only tables scroll
    wider = "box => box.scrollWidth > box.clientWidth"
    assert page.locator(".scroll").first.evaluate(wider)
    for chart in page.locator(".chart >> visible=true").all():
        assert not chart.evaluate(wider)


@needs_chromium
@pytest.mark.parametrize(("scheme", "darker"), [("light", "text"), ("dark", "page")])
def test_text_of_page_and_pictures_can_be_read_in_light_and_dark(
    opened, made_up_summary, scheme, darker
):
    page = opened(made_up_summary, color_scheme=scheme)
    colours = page.evaluate("""() => {
        const style = element => getComputedStyle(element);
        const label = document.querySelector(".chart svg text");
        return {text: style(document.body).color, page: style(document.body).backgroundColor,
                chart: style(label).fill};
    }""")
    light = {name: sum(map(int, rgb[4:-1].split(","))) / 3 for name, rgb in colours.items()}
    assert abs(light["text"] - light["page"]) > 180
    assert (light["text"] < light["page"]) == (darker == "text")
    assert colours["chart"] == colours["text"]
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert widest(page) <= page.viewport_size["width"]


def test_rows_where_candidates_disagree_are_shown_by_number_and_text(made_up_summary):
    divided = made_up_summary.shown_rows.divided[0]
    one = replace(divided, text="Is it?\nAnswer yes or no.", answer="Yes")
    page = comparison_page(replace(made_up_summary, shown_rows=ShownRows(divided=(one,))))
    order = [line.label for line in made_up_summary.lines if line.score is not None]
    marks = re.findall('<td class="(?:right)?" data-title="([^"]+)">(.)</td>', page)
    assert marks == [(label, "✓" if label in one.right else "✗") for label in order]
    assert f'<th scope="row">{one.row}</th>' in page  # all rows are of one file, which is named
    assert "<bdi>Is it?\nAnswer yes or no.</bdi></div><small>right: <bdi>Yes</bdi></small>" in page


def test_a_page_says_how_to_hand_it_on_without_texts_or_why_it_has_none(made_up_summary):
    rows = made_up_summary.shown_rows
    assert rows.no_texts
    assert html.escape(rows.no_texts) in comparison_page(made_up_summary).replace("&#39;", "&#x27;")
    page = comparison_page(replace(made_up_summary, shown_rows=replace(rows, no_texts="")))
    assert "lorada report FOLDER --no-text" in page


LORA = Candidate("lora", {}, trainable=9000, percent=0.5)
LINE = CandidateLine(
    CandidateResult("lora", LORA), Measured(score=71.24), Decided(low=60.0, high=80.0)
)
NAMES = ["report.html", "report.json"]


@pytest.fixture(scope="module")
def written(made_up_folder):
    return write_report(made_up_folder)[1]


def test_the_report_is_written_as_a_page_and_as_json_with_one_verdict(
    made_up_folder, written, made_up_summary
):
    assert sorted(written) == sorted(made_up_folder / name for name in NAMES)
    stored = json.loads((made_up_folder / "report.json").read_text())
    assert stored == json.loads(json.dumps(made_up_summary.plain()))
    verdict = stored["verdict"]
    assert f'<p class="verdict">{verdict}</p>' in (made_up_folder / "report.html").read_text()


def test_a_comparison_of_which_nothing_has_run_has_a_report(tmp_path, made_up_folder):
    for name in ("comparison.yaml", "plan.json"):
        (tmp_path / name).write_text((made_up_folder / name).read_text())
    _, written = write_report(tmp_path)
    assert [path.name for path in written] == NAMES
    page = written[0].read_text()
    assert 'class="chart' not in page
    assert '<tr class="failed">\n<th scope="row"><bdi>boft</bdi>' in page


def test_the_page_shows_every_part_and_the_table_every_candidate(made_up_summary):
    page = comparison_page(made_up_summary)
    for part in (*made_up_summary.sentences, *made_up_summary.commands.values()):
        assert html.escape(part, quote=True).replace("&#x27;", "&#39;") in page
    top = made_up_summary.lines[0]
    scores, costs = cells_of(score_table(made_up_summary)), cells_of(cost_table(made_up_summary))
    kind, notes, cells = scores[top.label]
    assert (kind, notes) == ("best", ["the one to take", top.result.sizes])
    assert cells["score (95 % interval)"].startswith(f"{top.score:.1f} (")
    assert scores["the commonest answer"][:2] == ("baseline", ["answer: Yes"])
    kind, notes, cells = costs[top.label]
    assert (kind, notes) == ("best", [])
    size = "trained parameters (of the model)"
    assert cells[size] == f"{top.result.trainable:,} ({top.result.candidate.percent:.3f} %)"
    assert cells["time (s/step)"] == f"{top.measured.seconds_per_step:.3f}"
    assert costs["vblora"][2][size] == "345,600 (0.257 %, above the budget)"
    assert "the commonest answer" not in costs


def cells_of(table):
    """The rows of a table by name: kind, notes, and cells by the title of their column."""
    return {
        row.name: (row.kind, row.notes, dict(zip(table.header[1:], row.cells, strict=True)))
        for row in table.rows
    }


def test_what_runs_have_stored_of_size_time_and_loss_is_shown(made_up_summary):
    line = next(one for one in made_up_summary.lines if one.label == "lora (0.1%)")
    costs = cells_of(cost_table(made_up_summary))[line.label][2]
    assert costs["adapter's file (MB)"] == f"{(4 * 115_200 + 900) / 1e6:.2f}"
    assert costs["training of the search"] == "4 min"  # four trials of a minute
    runs = [run.result for run in line.result.runs]
    assert costs["training of all runs"] == duration(sum(run.wall_time_s for run in runs))
    learned = cells_of(learning_table(made_up_summary))[line.label][2]
    in_training = sum(run.train_loss for run in runs) / len(runs)
    held_out = float(line.result.losses.mean())
    assert learned["loss in training"] == f"{in_training:.3f}"
    assert learned["loss on held-out rows"] == f"{held_out:.3f}"
    assert learned["held-out − training"] == f"{held_out - in_training:+.3f}"
    assert learned["searched"] == "4 learning rates"
    page = comparison_page(made_up_summary)
    assert "all other settings of a method are fixed and were not tuned" in page
    assert "for 40 trials of the search" in page
    plain = line.plain()
    assert (plain["search_seconds"], plain["adapter_bytes"]) == (240.0, 4 * 115_200 + 900)


def test_a_column_in_which_no_candidate_has_anything_is_left_out_with_its_words(made_up_summary):
    assert "lost elsewhere" in " ".join(score_table(made_up_summary).header)
    table = score_table(replace(made_up_summary, retention=RetentionSummary()))
    assert "lost elsewhere" not in " ".join(table.header)
    assert "Lost elsewhere" not in table.note


def test_how_sure_the_verdict_is_stands_beside_it(made_up_summary):
    page = comparison_page(made_up_summary)
    best = made_up_summary.lines[0]
    seeds = sorted(best.seed_scores)
    sure = html.unescape(page[page.index("How sure is it?") : page.index("What next?")])
    assert "60 held-out rows, 10 candidates with 2 to 3 seeds each" in sure
    assert f"{best.label} does not differ significantly from " in sure
    assert f"best of those compared is {100 * made_up_summary.decision.p_best:.0f} %" in sure
    assert f"The 3 seeds of {best.label} score {seeds[0]:.1f} to {seeds[-1]:.1f} %." in sure
    for target in ("wrong-rows", "unstable", "disagreements"):
        assert (f'href="#{target}"' in page) == (f'id="{target}"' in page)
    alone = replace(made_up_summary, best="", decision=None)
    assert "differ significantly" not in comparison_page(alone)


@needs_chromium
@pytest.mark.parametrize("width", [390, 900, 1440])
def test_the_first_screen_has_result_certainty_and_next_step_at_each_width(
    opened, made_up_summary, width
):
    summary = replace(made_up_summary, verdict="Take lorada_la (0.2%), as its score is higher.")
    page = opened(summary, viewport={"width": width, "height": 900})
    assert widest(page) == width
    for part in (".verdict", "text=How sure is it?", "pre.command >> nth=0"):
        box = page.locator(part).bounding_box()
        assert box["y"] + box["height"] <= 900
    letters = "box => Math.min(...[...box.querySelectorAll('text')]" + (
        ".map(text => text.getBoundingClientRect().height))"
    )
    for chart in page.locator(".chart >> visible=true").all():
        assert (
            chart.evaluate(letters) > 9
        )  # pixels: a picture does not shrink until it is unreadable


@needs_chromium
def test_a_picture_is_saved_as_an_svg_file_of_its_own(opened, made_up_summary):
    page = opened(made_up_summary, accept_downloads=True)
    with page.expect_download() as download:
        page.locator("a.save").first.click()
    assert download.value.suggested_filename == "scores.svg"
    svg = download.value.path().read_text()
    ElementTree.fromstring(svg)
    assert "var(--" not in svg  # a page's colours are not there
    assert made_up_summary.best in svg


def test_scores_that_are_losses_have_three_digits():
    line = replace(LINE, measured=Measured(score=3.2144), decided=Decided(low=3.1, high=3.3))
    base = Baseline("the model as it is", 3.5, 3.4, 3.6)
    summary = Summary("v", metric="perplexity", lines=(line,), baselines=(base,))
    table = score_table(summary)
    assert table.header[:2] == ["candidate", "loss (95 % interval)"]
    scores = {row.name: row.cells[0] for row in table.rows}
    assert scores == {"lora": "3.214 (3.100 to 3.300)", base.name: "3.500 (3.400 to 3.600)"}
    assert table.note.startswith("Loss: nats, less is better, with")


def test_a_small_p_and_a_metric_of_its_own_are_shown():
    decided = Decided(expected_loss=0.4, p_best=1e-9, letter="ab")
    line = replace(LINE, measured=replace(LINE.measured, value=30.0), decided=decided)
    table = score_table(Summary("v", metric="matthews", lines=(line,)))
    assert table.header[2:] == ["matthews", "expected loss", "group", "p (against the highest)"]
    assert table.rows[0].cells[1:] == ["30.00", "0.4", "ab", "< 0.001"]
    same = replace(line, measured=LINE.measured)
    assert "matthews" not in score_table(Summary("v", metric="matthews", lines=(same,))).header


def test_the_page_says_steps_batch_rows_and_each_trial_with_its_loss(tmp_path):
    folder = write_made_up(tmp_path / "made up", rows=20)
    plan = json.loads((folder / "plan.json").read_text())
    plan |= {
        "steps": 80,
        "batch": 16,
        "dev_rows": 30,
        "train": {"file": "train.jsonl", "rows": 300, "sha256": ""},
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    _, (page, stored) = write_report(folder)
    text = html.unescape(page.read_text())
    assert (
        "80 steps of 16 rows on each device, 300 rows to learn, of which 30 are set aside" in text
    )
    assert "Learning rates with the loss on the rows set aside (nats)" in text
    assert "<bdi>0.0001</bdi>: 0.9333</span>; " in text
    assert '<span class="chosen"><bdi>0.0002</bdi>: 0.6000</span>; ' in text
    lora = next(one for one in json.loads(stored.read_text())["lines"] if one["method"] == "lora")
    assert [trial["rate"] for trial in lora["trials"]] == [2e-4, 6e-4, 2e-2, 1e-4]


def test_sentence_table_and_terminal_write_scores_and_expected_losses_alike(
    tmp_path, capsys, made_up_folder
):
    folder = tmp_path / "losses"
    shutil.copytree(made_up_folder, folder)
    summary, (page, _) = write_report(folder, "loss")
    _show_report(summary, [page], as_json=False)
    printed = capsys.readouterr().out
    best = summary.lines[0]
    low, high = (f"{end:.3f}" for end in (best.decided.low, best.decided.high))
    score, loss = f"{best.score:.3f}", summary.score_format.short_loss(best.decided.expected_loss)
    assert f"expect {summary.decision.expected_score:.3f} nats, " in summary.verdict
    assert f"is expected to be {loss.replace('< ', 'less than ')} nats above" in summary.verdict
    rows = score_table(summary).rows
    assert (rows[0].cells[0], rows[0].cells[1]) == (f"{score} ({low} to {high})", loss)
    (line,) = (line for line in printed.splitlines() if f" {score} ± " in line)
    assert f" {loss} " in line
