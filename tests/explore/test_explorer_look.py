"""How the explorer's page looks in a headless Chromium: texts, widths, colours, and its speed."""

import browsing
import pytest
from browsing import needs_chromium, widest
from made_up_explorer import SENTENCE, made_up_page

pytest.importorskip("jinja2", reason="needs the extra explore")

from test_explorer_browser import open_head

from lorada.explore.explorer_page import explorer_page

pytestmark = needs_chromium
browser, opened, page_of = browsing.browser, browsing.opened, explorer_page
READY = "html[data-ready]"
HOSTILE = [
    "<img src=x onerror='window.hacked=1'>",
    "</script><script>window.hacked=1</script>",
    "\"><svg onload=window.hacked=1>",
    "=1+1\",\n",
    "\u202egnisrever\x00",
    "עברית",
    "👩‍👩‍👧",
    "x" * 300,
    "",
]  # fmt: skip


def test_a_long_text_scrolls_within_its_picture_and_keeps_the_marked_pair_in_sight(opened):
    page = opened(made_up_page([[f"w{i}" for i in range(256)]], layers=1, heads=1))
    open_head(page, 0, 0)
    picture = page.locator("#detail canvas").first
    for key in ["ArrowDown"] * 2 + ["ArrowRight"] * 200:
        picture.press(key)
    left, seen, side = picture.evaluate("""canvas => {
        const box = canvas.parentElement;
        const { edge, side } = view.pictures[0].place;
        return [edge + side * 200 / 256 - box.scrollLeft, box.clientWidth, side];
    }""")
    assert side >= 3 * 256
    assert 0 < left < seen


def test_hostile_texts_stay_text(opened):
    data = made_up_page([HOSTILE], parts=HOSTILE[:2], name=HOSTILE[1])
    data["run"]["method"] = HOSTILE[2]
    (shown,) = data["run"]["shown"]
    shown["next"]["with"] = [(token, 0.1) for token in HOSTILE]
    for layer in shown["layers"]:
        layer["name"] = HOSTILE[1]
    page = opened(data, viewport={"width": 320, "height": 640})
    scripts = page.locator("script").count()
    open_head(page, 0, 0)
    for _ in HOSTILE:
        page.locator("#detail canvas").first.press("ArrowDown")
    assert page.locator("script").count() == scripts
    assert page.locator("img").count() == 0
    assert page.locator("h1").text_content() == HOSTILE[1]
    shown = page.locator("#tokens li").all_text_contents()
    assert shown[0] == "<img␣src=x␣onerror='window.ha…"
    assert shown[3:6] == ['=1+1",⏎', "\\u202egnisrever\\u0000", "עברית"]
    assert shown[6] == HOSTILE[6]
    assert shown[8] == "(empty)"
    shown = page.locator("#next [data-setting=with] th").all_text_contents()
    assert shown[0] == "<img␣src=x…"
    assert shown[8] == "(empty)"
    assert page.evaluate("window.hacked") is None
    assert widest(page) == 320


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_is_wider_than_the_page(opened, width):
    data = made_up_page([SENTENCE], layers=30, heads=9)
    page = opened(data, viewport={"width": width, "height": 800})
    open_head(page, 5, 5)
    assert widest(page) == width
    rights = page.locator("figure, svg, .heads, select").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect().right)"
    )
    assert max(rights) <= width
    sizes = page.locator("[role=gridcell]").evaluate_all(
        "all => all.map(one => Math.min(one.offsetHeight, one.offsetWidth))"
    )
    assert min(sizes) >= 16
    # Where there is room, all layers are in sight.
    grid = page.locator(".heads").first.evaluate("one => [one.scrollWidth, one.clientWidth]")
    assert (grid[0] <= grid[1]) == (width >= 800)


def test_colours_follow_the_system(opened):
    page = opened(made_up_page([SENTENCE]), color_scheme="dark")
    open_head(page, 0, 0)
    zero = """() => {
        const { canvas, place } = view.pictures[0];
        const at = (place.edge + place.side - 3) * devicePixelRatio;
        const [r, g, b] = canvas.getContext("2d").getImageData(at, place.edge + 3, 1, 1).data;
        const style = getComputedStyle(document.body);
        return {zero: `rgb(${r}, ${g}, ${b})`, page: style.backgroundColor, text: style.color,
                line: getComputedStyle(document.querySelector("#change svg text")).fill};
    }"""
    for shown in ("dark", "light"):
        page.emulate_media(color_scheme=shown)
        page.wait_for_timeout(100)
        light = {name: sum(map(int, rgb[4:-1].split(","))) / 3
                 for name, rgb in page.evaluate(zero).items()}  # fmt: skip
        assert (light["page"] > 200) == (shown == "light")
        assert abs(light["text"] - light["page"]) > 180
        assert abs(light["line"] - light["page"]) > 180
        assert abs(light["zero"] - light["page"]) < 20
