"""The page of a comparison in a headless Chromium without a network."""

import dataclasses
import re
from itertools import pairwise

import pytest
from browsing import appears, assert_policy_stops_others, chromium, needs_chromium, watched, widest
from made_up_summary import METHODS, made_up_summary

pytest.importorskip("altair", reason="needs the extra compare")

from lorada.report.comparison.page import comparison_page

LONG = "x" * 300
HOSTILE = (
    "<img src=x onerror='window.hacked=1'>",
    "</script><script>window.hacked=1</script>",
    "\"><svg onload=window.hacked=1>",
    "{{ 7 * 7 }} ${7 * 7} &lt;b&gt;",
    "\u202egnisrever",
    LONG,
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens a page, which must make no request and no error until the test ends."""
    path = tmp_path / "report.html"
    with watched(browser, path) as open_page:

        def opened_page(summary, **options):
            path.write_text(comparison_page(summary), encoding="utf-8")
            page = open_page(**options)
            # Not wait_for_function: it evaluates text, which the page's policy forbids.
            appears(page, ".chart:not([data-drawn])", 0)
            return page

        yield opened_page


def names_in(page):
    """The headings of the table's rows, from above."""
    return page.locator("table.sortable tbody th > bdi").all_text_contents()


def column_of(page, number):
    return page.locator(f"table.sortable tbody td:nth-child({number})").all_text_contents()


def test_the_same_summary_gives_the_same_page():
    assert comparison_page(made_up_summary()) == comparison_page(made_up_summary())


def test_forty_candidates_with_five_seeds_fit_in_two_megabytes():
    many = made_up_summary([f"method_{i}" for i in range(40)], seeds=(1, 2, 3, 4, 5), steps=3000)
    assert len(comparison_page(many).encode()) < 2_000_000


def test_headings_are_in_order_and_the_language_is_named():
    page = comparison_page(made_up_summary())
    assert '<html lang="en">' in page
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


@needs_chromium
def test_the_page_draws_all_charts_without_a_request_or_an_error(opened):
    page = opened(made_up_summary())
    assert page.locator(".chart svg.marks").count() == 4
    for chart in page.locator(".chart").all():
        assert chart.get_attribute("role") == "img"
        assert len(chart.get_attribute("aria-label")) > 20


@needs_chromium
def test_a_table_that_is_wider_than_the_page_says_so(opened):
    page = opened(made_up_summary())
    page.set_viewport_size({"width": 1320, "height": 800})
    appears(page, "#candidates ~ .scroll.wide", 0)
    assert not page.locator(".hint").is_visible()
    page.set_viewport_size({"width": 900, "height": 800})
    appears(page, "#candidates ~ .scroll.wide")
    assert page.locator(".hint").is_visible()


@needs_chromium
def test_the_policy_of_the_page_stops_a_script_and_a_connection(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(comparison_page(made_up_summary()), encoding="utf-8")
    assert_policy_stops_others(browser, path)


@needs_chromium
def test_a_click_and_a_key_sort_the_table_by_numbers_or_names_and_say_so(opened):
    summary = made_up_summary()
    page = opened(summary)
    heading = page.locator("table.sortable thead th").nth(5)
    assert page.locator("[aria-sort]").count() == 1
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    able = [line for line in summary.lines if line.trainable]
    by_size = [line.label for line in sorted(able, key=lambda line: line.trainable)]
    without = ["boft", "the model as it is", "the commonest answer"]
    assert names_in(page) == by_size + without
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert page.locator("[aria-sort]").count() == 1
    assert names_in(page) == by_size[::-1] + without
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert page.locator("table.sortable thead th").nth(4).get_attribute("aria-sort") == "ascending"
    shown = [text for text in column_of(page, 5) if text != "–"]
    assert shown == sorted(shown) != shown[::-1]
    page.locator("table.sortable thead button").first.click()
    assert [name for name in names_in(page) if name in METHODS] == sorted(METHODS, key=str.lower)


@needs_chromium
def test_the_menus_change_what_the_charts_show(opened):
    page = opened(made_up_summary(budgets=("0.1%", "0.2%")))
    cost, loss = page.locator("figure").nth(0), page.locator("figure").nth(3)
    axis = cost.locator("svg text", has_text="trained parameters")
    assert axis.count() == 1
    cost.locator("select").select_option(label="peak memory (GiB)")
    appears(page, "[data-drawn=cost-memory]")
    assert axis.count() == 0
    assert cost.locator("svg text", has_text="peak memory (GiB)").count() == 1
    faint = "path[stroke-opacity='0.12'], path[opacity='0.12']"
    assert loss.locator(faint).count() == 0
    loss.locator("svg .role-legend-label text", has_text="lora+lmam").click()
    appears(page, faint, len(METHODS) - 1)
    loss.locator("select.which").select_option(label="0.1%")
    appears(page, "[data-drawn=loss-0]")
    assert loss.locator(faint).count() == 0


@needs_chromium
def test_a_menu_that_changes_while_a_chart_is_drawn_ends_at_its_last_choice(opened):
    page = opened(made_up_summary())
    # The first of two charts takes longer to draw than the second.
    page.evaluate("""() => {
        const [embed, menu] = [window.vegaEmbed, document.querySelector("select.which")];
        const waits = [300, 0];
        window.vegaEmbed = async (...given) => {
            await new Promise(done => setTimeout(done, waits.shift()));
            return embed(...given);
        };
        for (const choice of ["cost-time", "cost-memory"]) {
            menu.value = choice;
            menu.dispatchEvent(new Event("change"));
        }
    }""")
    page.wait_for_timeout(800)
    appears(page, "[data-drawn=cost-memory]")
    chart = page.locator("figure").first
    assert chart.locator("svg.marks").count() == 1
    assert chart.locator("svg text", has_text="peak memory (GiB)").count() == 1


@needs_chromium
def test_hostile_names_and_texts_stay_text(opened):
    summary = made_up_summary(HOSTILE, text=f"{HOSTILE[0]}\n{HOSTILE[1]}")
    everywhere = " ".join(HOSTILE)
    summary = dataclasses.replace(
        summary, verdict=everywhere, sentences=HOSTILE, model=HOSTILE[1], task=HOSTILE[0],
        commands={"train": everywhere}, hardware=HOSTILE, versions={HOSTILE[1]: HOSTILE[2]},
        notes=HOSTILE,
    )  # fmt: skip
    page = opened(summary, viewport={"width": 320, "height": 640})
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 3
    assert page.locator("img").count() == 0
    assert set(names_in(page)) >= set(HOSTILE)
    assert page.locator(".verdict").text_content() == everywhere
    assert page.locator("#command-1").text_content() == everywhere
    points = page.locator("figure").first.locator("svg .mark-symbol path")
    points.first.hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert page.evaluate("window.hacked") is None
    assert page.locator("#vg-tooltip-element img").count() == 0
    assert widest(page) == 320
    box = page.locator(".scroll").first  # on a narrow page only tables scroll
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)
    assert box.evaluate("box => box.scrollLeft") > 0


@needs_chromium
@pytest.mark.parametrize(("scheme", "darker"), [("light", "text"), ("dark", "page")])
def test_text_of_page_and_charts_can_be_read_in_light_and_dark(opened, scheme, darker):
    page = opened(made_up_summary(), color_scheme=scheme)
    colours = page.evaluate("""() => {
        const style = element => getComputedStyle(element);
        const label = document.querySelector(".chart svg .role-axis-label text");
        return {text: style(document.body).color, page: style(document.body).backgroundColor,
                chart: style(label).fill};
    }""")
    light = {name: sum(map(int, rgb[4:-1].split(","))) / 3 for name, rgb in colours.items()}
    assert abs(light["text"] - light["page"]) > 180
    assert (light["text"] < light["page"]) == (darker == "text")
    assert colours["chart"] == colours["text"]


@needs_chromium
def test_a_printed_page_has_its_charts_and_no_buttons(opened):
    page = opened(made_up_summary(), color_scheme="dark")
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF-")
    page.emulate_media(media="print")
    assert page.locator(".chart svg").first.is_visible()
    assert not page.locator("button.copy").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert widest(page) <= page.viewport_size["width"]


@needs_chromium
def test_the_copy_button_copies_the_command_with_or_without_a_clipboard(opened):
    summary = made_up_summary()
    page = opened(summary, permissions=["clipboard-read", "clipboard-write"])
    for number, name in enumerate(("train", "serve")):
        page.locator("button.copy").nth(number).click()
        appears(page, f"button.copy[data-of=command-{number + 1}]:has-text('Copied')")
        assert page.evaluate("navigator.clipboard.readText()") == summary.commands[name]
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")


@needs_chromium
def test_a_comparison_without_a_score_is_a_page_without_charts(opened):
    summary = made_up_summary()
    nothing = dataclasses.replace(
        summary, lines=summary.lines[-1:], histories={}, disagreements=(), best="", commands={},
        baselines=(), seeds=(), hardware=(), versions={}, notes=(), sentences=(),
    )  # fmt: skip
    page = opened(nothing)
    assert page.locator(".chart").count() == 0
    assert names_in(page) == ["boft"]


@needs_chromium
def test_rows_where_candidates_disagree_are_shown_by_number_and_text(opened):
    summary = made_up_summary(text="Is it?\nAnswer yes or no.")
    page = opened(summary)
    first = page.locator("table.grid tbody tr").first
    one = summary.disagreements[0]
    assert first.locator("th").text_content() == "test.jsonl 1"
    assert first.locator("td.words bdi").first.text_content() == "Is it?\nAnswer yes or no."
    order = [line.label for line in summary.lines if line.score is not None]
    marks = first.locator("td").all_text_contents()[2:]
    assert marks == ["✓" if label in one.right else "✗" for label in order]
