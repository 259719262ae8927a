"""The explorer's page in a headless Chromium without a network: every control, number and look."""

import numpy as np
import page_browser
import pytest
from made_up_explorer import SENTENCE, made_up_page, softmax_maps
from page_browser import widest

pytest.importorskip("jinja2", reason="needs the extra explore")

from lorada.explore.explorer_page import explorer_page, pack

pytestmark = page_browser.needs_chromium
browser, opened, page_of = page_browser.browser, page_browser.opened, explorer_page
READY = "html[data-ready]"
HOSTILE = [
    "<img src=x onerror='window.hacked=1'>", "</script><script>window.hacked=1</script>",
    "\"><svg onload=window.hacked=1>", "=1+1\",\n", "\u202egnisrever\x00", "עברית",
    "👩‍👩‍👧", "x" * 300, "",
]  # fmt: skip


def cell(page, layer, head):
    return page.locator(f"#heads [data-layer='{layer}']").nth(head)


def open_head(page, layer, head):
    """Open a head; the titles of its pictures."""
    cell(page, layer, head).click()
    shown_head(page, layer, head)
    return page.locator("#detail h4").all_text_contents()


def shown_head(page, layer, head):
    page.wait_for_selector(f"#detail[data-shown$=' {layer} {head}']")


def texts(page, selector):
    return page.locator(selector).all_text_contents()


def written(number):
    """A number as text of the page, as a number."""
    return float(number.replace("−", "-").replace(" %", ""))


def numbers_of(line):
    """The numbers behind the last colon of a line of the page: name → number."""
    parts = [part.rpartition(" ") for part in line.rpartition(": ")[2].split(" · ")]
    return {name: written(value) for name, _, value in parts}


def close_to(value):
    """Equal to a number that is shown with three digits, also of a matrix of 16 bits."""
    return pytest.approx(value, rel=0.0051, abs=1e-4)


def drawn(page, number):
    """The matrix that the picture of this number shows."""
    found = page.evaluate("number => [...view.pictures[number].matrix.values]", number)
    return np.reshape(found, (-1, round(len(found) ** 0.5)))


def pixels(page, number):
    """Red, blue and all colours of the middle of each square of a picture of nine tokens."""
    found = page.evaluate("""number => {
        const { canvas, place } = view.pictures[number];
        const middle = i => Math.round(place.edge + (i + 0.5) * place.side / 9);
        const all = [...Array(9).keys()];
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const from = (x, y) => 4 * (middle(y) * canvas.width + middle(x));
        return all.map(y => all.map(x => [...data.slice(from(x, y), from(x, y) + 3)]));
    }""", number)  # fmt: skip
    red, green, blue = np.moveaxis(np.array(found), -1, 0)
    return red, blue, red + green + blue


def place_of(page, number):
    """Where a drawn matrix begins on its canvas and how wide it is, in pixels."""
    place = page.evaluate("number => view.pictures[number].place", number)
    return place["edge"], place["side"]


def hover_entry(page, number, query, key, size):
    """Point at an entry of a drawn matrix of so many tokens."""
    edge, side = place_of(page, number)
    at = {name: edge + (i + 0.5) * side / size for name, i in (("x", key), ("y", query))}
    page.locator("#detail canvas").nth(number).hover(position=at)


@pytest.mark.more
def test_each_head_shows_every_measure_and_the_line_below_all_numbers_of_one(opened):
    data = made_up_page(layers=3, heads=4, no_map=(1,))
    page = opened(data)
    layers = data["run"]["shown"][0]["layers"]
    keys = [one.get_attribute("value") for one in page.locator("#measure option").all()]
    assert keys == ["effect", "negative", "moved", *layers[0]["attends"]]
    for key in keys:
        page.locator("#measure").select_option(key)
        shown = page.locator("#heads [role=row]").evaluate_all("""all => all.map(row =>
            [...row.querySelectorAll(".cell")].map(one => one.dataset.value))""")
        values = [layer["attends"].get(key, layer.get(key)) or [""] * 4 for layer in layers]
        found = [[one and float(one) for one in heads] for heads in zip(*shown, strict=True)]
        assert found == values
        missing = cell(page, 1, 0).get_attribute("aria-label") == "layer 1, head 0: no map"
        assert missing == (layers[1].get(key, layers[1]["attends"].get(key)) is None)
    cell(page, 2, 1).hover()
    (text,) = texts(page, "#heads .readout")
    assert text.startswith("Layer 2, head 1 (layers.2.self_attn): ")
    numbers = numbers_of(text.replace(" %", ""))
    assert numbers["relative norm of the map"] == close_to(layers[2]["effect"][1])
    first = layers[2]["attends"]["first"][1]
    assert numbers["attention to the first token"] == close_to(100 * first)
    assert open_head(page, 1, 0) == ["Softmax", "Without the adapter", "Difference"]


@pytest.mark.more
def test_a_head_opens_with_pictures_of_its_matrices_and_the_numbers_of_any_two_tokens(opened):
    matrices, fused = [], softmax_maps(np.random.default_rng(5), 4, 9)
    data = made_up_page([SENTENCE], matrices=matrices)
    data["run"]["shown"][0]["layers"][0].update(inside=True, fused=pack(fused))
    page = opened(data, color_scheme="light")
    assert page.locator("#detail").is_hidden()
    titles = open_head(page, 2, 3)
    assert texts(page, "#detail-title") == ["Layer 2, head 3"]
    assert titles == ["Softmax", "Map", "Sum", "Without the adapter", "Difference"]
    softmax, added, without = (matrices[2][kind][3] for kind in ("softmax", "map", "without"))
    expected = (softmax, added, softmax + added, without, softmax - without)
    for number, matrix in enumerate(expected):
        assert np.abs(drawn(page, number) - matrix).max() < 2 / 32767
    for number, matrix in enumerate(expected[:3]):
        red, blue, all_colours = pixels(page, number)
        assert (np.sign(blue - red) == np.sign(matrix)).all()
        assert all_colours.argmin() == np.abs(matrix).argmax()
    for picture, (query, key) in zip((0, 1, 2), ((4, 2), (8, 0), (0, 0)), strict=True):
        hover_entry(page, picture, query, key, 9)
        (line,) = texts(page, "#detail .readout")
        tokens = [SENTENCE[i].replace(" ", "␣") for i in (query, key)]
        assert line.startswith(f"“{tokens[0]}” ({query}) looks at “{tokens[1]}” ({key}): ")
        entries = [close_to(matrix[query, key]) for matrix in expected]
        names = [title.lower() for title in titles]
        assert numbers_of(line) == dict(zip(names, entries, strict=True))
    assert open_head(page, 0, 1)[2] == "Softmax with the map inside"
    assert np.abs(drawn(page, 2) - fused[1]).max() < 1 / 32767


@pytest.mark.more
def test_what_has_no_map_or_a_trained_head_shows_so(opened):
    page = opened(made_up_page([SENTENCE], no_map=(0, 1, 2), parts=["LoRA"]))
    assert page.locator("#measure option").first.get_attribute("value") == "moved"
    assert page.locator("#next [data-setting]").count() == 2  # one part alone is all of it
    data = made_up_page([SENTENCE])
    run, (shown,) = data["run"], data["run"]["shown"]
    run["head"] = "head"
    shown["next"]["head"], shown["change"]["head"] = shown["next"]["with"], shown["change"]["all"]
    page = opened(data)
    captions = ["map and head", "LoRA and head", "head alone"]
    assert texts(page, "#next caption") == ["adapter on", "adapter off", *captions]
    assert texts(page, "#change svg > text")[-4:] == ["all together", *captions]


def test_everything_works_from_the_keyboard(opened):
    page = opened(made_up_page([SENTENCE]))
    page.locator("#measure").focus()
    page.keyboard.press("Tab")
    focused = page.locator("[role=gridcell]:focus")
    for key, place in (
        ("ArrowRight", "1 0"), ("ArrowDown", "1 1"), ("End", "2 1"), ("ArrowRight", "2 1"),
        ("Home", "0 1"), ("ArrowUp", "0 0"), ("ArrowUp", "0 0"), ("ArrowRight", "1 0"),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert focused.evaluate("({dataset}) => `${dataset.layer} ${dataset.head}`") == place
        assert page.locator("#heads [tabindex='0']").count() == 1
    assert focused.evaluate("cell => getComputedStyle(cell).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    shown_head(page, 1, 0)
    assert page.locator("#detail-title").evaluate("one => one === document.activeElement")
    assert cell(page, 1, 0).get_attribute("aria-selected") == "true"
    page.keyboard.press("Tab")
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    (line,) = texts(page, "#detail .readout")
    assert line.startswith("“␣little” (1) looks at “The” (0): ")


@pytest.mark.more
def test_each_sentence_has_its_own_tokens_heads_next_tokens_and_change(opened):
    data = made_up_page(layers=5)
    page = opened(data)
    open_head(page, 0, 2)
    for number, shown in enumerate(data["run"]["shown"]):
        page.locator("#sentence").select_option(str(number))
        page.wait_for_selector(f"#detail[data-shown^='{number} ']")
        tokens = [token.replace(" ", "␣") for token in data["sentences"][number]["tokens"]]
        assert texts(page, "#tokens li") == tokens
        effect = float(cell(page, 0, 2).get_attribute("data-value"))
        assert effect == shown["layers"][0]["effect"][2]
        assert len(drawn(page, 0)) == len(tokens)
        for key, expected in shown["next"].items():
            table = f"#next [data-setting='{key}']"
            words, shares = zip(*expected, strict=True)
            assert texts(page, f"{table} th") == [word.replace(" ", "␣") for word in words]
            percents = pytest.approx([100 * share for share in shares], abs=0.051)
            assert [*map(written, texts(page, f"{table} td:last-child"))] == percents
            bars = page.locator(f"{table} .bar div")
            wide = bars.evaluate_all("all => all.map(one => parseFloat(one.style.width))")
            assert wide == percents
        lines = page.locator("#change path[data-line]").evaluate_all("""all => all.map(line =>
            line.getAttribute("d").slice(1).split("L").map(point => -point.split(" ")[1]))""")
        change = [*shown["change"].values()]
        assert np.corrcoef(np.ravel(lines), np.ravel(change))[0, 1] == pytest.approx(1)
        marks = texts(page, "#change svg > text")
        assert [*map(written, marks[:3])] == close_to(np.max(change) * np.array([0, 0.5, 1]))
    captions = ["map alone", "LoRA alone"]
    assert texts(page, "#next caption") == ["adapter on", "adapter off", *captions]
    assert marks[-4:] == ["after layer", "all together", *captions]


@pytest.mark.more
def test_a_long_text_scrolls_within_its_picture_and_keeps_the_marked_pair_in_sight(opened):
    page = opened(made_up_page([[f"w{i}" for i in range(256)]], layers=1, heads=1))
    open_head(page, 0, 0)
    picture = page.locator("#detail canvas").first
    for key in ["ArrowDown"] * 2 + ["ArrowRight"] * 200:
        picture.press(key)
    edge, side = place_of(page, 0)
    left, seen = picture.evaluate("({parentElement: box}) => [box.scrollLeft, box.clientWidth]")
    assert side >= 3 * 256
    assert 0 < edge + side * 200 / 256 - left < seen


@pytest.mark.parametrize("width", [320, 1280])
def test_hostile_texts_stay_text_and_nothing_is_wider_than_the_page(opened, width):
    data = made_up_page([HOSTILE], layers=30, heads=9, parts=HOSTILE[:2], name=HOSTILE[1])
    (shown,) = data["run"]["shown"]
    data["run"]["method"], shown["layers"][0]["name"] = HOSTILE[2], HOSTILE[1]
    shown["next"]["with"] = [(token, 0.1) for token in HOSTILE]
    page = opened(data, viewport={"width": width, "height": 640})
    scripts = page.locator("script").count()
    open_head(page, 5, 5)
    for _ in HOSTILE:
        page.locator("#detail canvas").first.press("ArrowDown")
    assert page.locator("script").count() == scripts
    assert page.locator("img").count() == 0
    assert page.evaluate("window.hacked") is None
    assert texts(page, "h1") == [HOSTILE[1]]
    tokens, words = texts(page, "#tokens li"), texts(page, "#next [data-setting=with] th")
    assert tokens[3:7] == ['=1+1",⏎', "\\u202egnisrever\\u0000", "עברית", HOSTILE[6]]
    assert (tokens[0], words[0]) == ("<img␣src=x␣onerror='window.ha…", "<img␣src=x…")
    assert tokens[8] == words[8] == "(empty)"
    assert widest(page) == width
    ends = "all => Math.max(...all.map(one => one.getBoundingClientRect().right))"
    assert page.locator("figure, svg, .heads, select").evaluate_all(ends) <= width
    least = "all => Math.min(...all.map(one => Math.min(one.offsetHeight, one.offsetWidth)))"
    assert page.locator("[role=gridcell]").evaluate_all(least) >= 16
    # Where there is room, all layers are in sight.
    grid = page.locator(".heads").first.evaluate("one => [one.scrollWidth, one.clientWidth]")
    assert (grid[0] <= grid[1]) == (width >= 800)


@pytest.mark.more
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
