"""The report of a comparison as a page and as JSON; the page in a headless Chromium too."""

import html
import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise

import page_browser
import pytest
from made_up_comparison import renamed, write_made_up
from page_browser import needs_chromium, widest

pytest.importorskip("matplotlib", reason="needs the extra compare")

from lorada.cli.compare_commands import _show_report
from lorada.compare.read_results import CandidateResult
from lorada.compare.report.baseline_scores import Baseline
from lorada.compare.report.candidate_lines import CandidateLine, Decided, Measured
from lorada.compare.report.row_disagreements import Disagreement
from lorada.compare.report.summarize_comparison import Summary
from lorada.compare.report.write_report import note, table, write_report
from lorada.compare.report.write_report import page as comparison_page
from lorada.compare.stored_plan import Candidate

HOSTILE = (
    "<img src=x onerror='window.hacked=1'>",
    "</script><script>window.hacked=1</script>",
    "\"><svg onload=window.hacked=1>",
    "{{ 7 * 7 }} ${7 * 7} &lt;b&gt; $_^$",
    "\u202egnisrever",
    "x" * 300,
)  # fmt: skip


browser, opened, page_of = page_browser.browser, page_browser.opened, comparison_page


def test_the_page_names_its_language_has_headings_in_order_and_no_script(made_up_summary):
    page = comparison_page(made_up_summary)
    assert '<html lang="en">' in page
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(re.findall('role="img" aria-label=".{20,}"><svg', page)) == 1
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
        disagreements=(Disagreement(HOSTILE[0], 1, HOSTILE[:3], HOSTILE[3:], *HOSTILE[:2]),),
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
    assert not page.locator(".chart").evaluate(wider)


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
    one = replace(made_up_summary.disagreements[0], text="Is it?\nAnswer yes or no.", answer="Yes")
    page = comparison_page(replace(made_up_summary, disagreements=(one,)))
    order = [line.label for line in made_up_summary.lines if line.score is not None]
    marks = re.findall('<td class="(?:right)?">(.)</td>', page)
    assert marks == ["✓" if label in one.right else "✗" for label in order]
    assert f"<bdi>test.jsonl</bdi> {one.row}</th>" in page
    assert "<bdi>Is it?\nAnswer yes or no.</bdi><small>right: <bdi>Yes</bdi></small>" in page


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
    assert 'class="chart"' not in page
    assert '<tr class="failed">\n<th scope="row"><bdi>boft</bdi>' in page


def test_the_page_shows_every_part_and_the_table_every_candidate(made_up_summary):
    page = comparison_page(made_up_summary)
    for part in (*made_up_summary.sentences, *made_up_summary.commands.values()):
        assert html.escape(part, quote=True).replace("&#x27;", "&#39;") in page
    top = made_up_summary.lines[0]
    header, rows = table(made_up_summary)
    found = {row.name: (row.kind, row.notes, dict(zip(header[1:], row.cells, strict=True)))
             for row in rows}  # fmt: skip
    kind, notes, cells = found[top.label]
    assert (kind, notes) == ("best", ["the one to take", top.result.sizes])
    assert cells["score (95 % interval)"].startswith(f"{top.score:.1f} (")
    size = "trained parameters (of the model)"
    assert cells[size] == f"{top.result.trainable:,} ({top.result.candidate.percent:.3f} %)"
    assert cells["time (s/step)"] == f"{top.measured.seconds_per_step:.3f}"
    assert found["vblora"][2][size] == "345,600 (0.257 %, above the budget)"
    assert found["the commonest answer"][:2] == ("baseline", ["answer: Yes"])


def test_scores_that_are_losses_have_three_digits():
    line = replace(LINE, measured=Measured(score=3.2144), decided=Decided(low=3.1, high=3.3))
    base = Baseline("the model as it is", 3.5, 3.4, 3.6)
    summary = Summary("v", metric="perplexity", lines=(line,), baselines=(base,))
    header, rows = table(summary)
    assert header[:2] == ["candidate", "loss (95 % interval)"]
    scores = {row.name: row.cells[0] for row in rows}
    assert scores == {"lora": "3.214 (3.100 to 3.300)", base.name: "3.500 (3.400 to 3.600)"}
    assert note(summary).startswith("Loss: nats, less is better, with")


def test_a_small_p_and_a_metric_of_its_own_are_shown():
    line = replace(
        LINE, measured=replace(LINE.measured, value=30.0), decided=Decided(p_best=1e-9, letter="ab")
    )
    header, (row,) = table(Summary("v", metric="matthews", lines=(line,)))
    assert header[2:6] == ["matthews", "expected loss", "group", "p (against the highest)"]
    assert row.cells[1:5] == ["30.00", "–", "ab", "< 0.001"]
    same = replace(line, measured=LINE.measured)
    assert "matthews" not in table(Summary("v", metric="matthews", lines=(same,)))[0]


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
    assert "4 trials, learning rate and loss on the rows set aside (nats): 0.0001: 0.9333; " in text
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
    assert f"Expected to be {loss.replace('< ', 'less than ')} nats above" in summary.verdict
    _, rows = table(summary)
    assert (rows[0].cells[0], rows[0].cells[1]) == (f"{score} ({low} to {high})", loss)
    (line,) = (line for line in printed.splitlines() if f" {score} ± " in line)
    assert f" {loss} " in line
