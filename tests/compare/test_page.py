"""The page of a comparison, as text and in a headless Chromium without a network."""

import random
import re
from dataclasses import replace
from itertools import pairwise

import browsing
import pytest
from browsing import needs_chromium, widest
from made_up_comparison import renamed

pytest.importorskip("matplotlib", reason="needs the extra compare")

from lorada.compare.report.page import page as comparison_page
from lorada.compare.report.summary import Disagreement

HOSTILE = (
    "<img src=x onerror='window.hacked=1'>",
    "</script><script>window.hacked=1</script>",
    "\"><svg onload=window.hacked=1>",
    "{{ 7 * 7 }} ${7 * 7} &lt;b&gt; $_^$",
    "\u202egnisrever",
    "x" * 300,
)  # fmt: skip


browser, opened, page_of = browsing.browser, browsing.opened, comparison_page


def test_forty_candidates_with_long_trainings_fit_in_two_megabytes(made_up_summary):
    line = made_up_summary.lines[0]
    lines = [renamed(line, f"method_{i}") for i in range(40)]
    noisy = random.Random(3)  # matplotlib leaves out points of a smooth curve by itself
    histories = {one.label: [(step, noisy.random()) for step in range(1, 3000)] for one in lines}
    many = replace(made_up_summary, lines=tuple(lines), histories=histories)
    assert len(comparison_page(many).encode()) < 2_000_000


def test_names_that_no_file_or_font_has_are_drawn(made_up_summary, recwarn):
    names = "half \ud800", "日本"
    lines = [renamed(line, name)
             for line, name in zip(made_up_summary.lines, names, strict=False)]  # fmt: skip
    page = comparison_page(replace(made_up_summary, lines=tuple(lines)))
    assert page.count("日本") > page.count("<bdi>日本")
    assert not [one for one in recwarn if "Glyph" in str(one.message)]


def test_the_page_names_its_language_has_headings_in_order_and_no_script(made_up_summary):
    page = comparison_page(made_up_summary)
    assert '<html lang="en">' in page
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(re.findall('role="img" aria-label=".{20,}"><svg', page)) == 5
    assert "<script" not in page
    ids = re.findall(' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


@needs_chromium
def test_hostile_names_and_texts_stay_text(opened, made_up_summary):
    everywhere, old = " ".join(HOSTILE), made_up_summary.lines
    lines = [replace(renamed(line, name, parts={"p": {"k": name}}), reason=name)
             for line, name in zip(old, HOSTILE, strict=False)]  # fmt: skip
    summary = replace(
        made_up_summary, lines=tuple(lines), verdict=everywhere, sentences=HOSTILE,
        model=HOSTILE[1], task=HOSTILE[0], commands={"train": everywhere}, hardware=HOSTILE,
        versions={HOSTILE[1]: HOSTILE[2]}, notes=HOSTILE,
        histories={name: [(1, 1.0), (2, 0.5)] for name in HOSTILE},
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
    assert page.locator(".scroll").first.evaluate("box => box.scrollWidth > box.clientWidth")


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


@needs_chromium
def test_pictures_shrink_with_the_page(opened, made_up_summary):
    page = opened(made_up_summary, viewport={"width": 390, "height": 800})
    assert widest(page) == 390
    boxes = page.locator(".chart").evaluate_all("""all => all.map(one => {
        const svg = one.querySelector("svg").getBoundingClientRect();
        return [one.scrollWidth - one.clientWidth, svg.width];
    })""")
    assert len(boxes) == 5
    assert all(hidden == 0 and width <= 390 for hidden, width in boxes)


def test_rows_where_candidates_disagree_are_shown_by_number_and_text(made_up_summary):
    one = replace(made_up_summary.disagreements[0], text="Is it?\nAnswer yes or no.", answer="Yes")
    page = comparison_page(replace(made_up_summary, disagreements=(one,)))
    order = [line.label for line in made_up_summary.lines if line.score is not None]
    marks = re.findall('<td class="(?:right)?">(.)</td>', page)
    assert marks == ["✓" if label in one.right else "✗" for label in order]
    assert f"<bdi>test.jsonl</bdi> {one.row}</th>" in page
    assert "<bdi>Is it?\nAnswer yes or no.</bdi><small>right: <bdi>Yes</bdi></small>" in page
