"""The explorer's page in a headless Chromium without a network: every control, number and look."""

import browsing
import numpy as np
import pytest
from browsing import widest
from made_up_explorer import SENTENCE, made_up_page, softmax_maps

pytest.importorskip("jinja2", reason="needs the extra explore")

from lorada.explore.explorer_page import explorer_page, pack

pytestmark = browsing.needs_chromium
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


def cell(page, layer, head):
    return page.locator(f"#heads [data-layer='{layer}']").nth(head)


def open_head(page, layer, head):
    cell(page, layer, head).click()
    shown_head(page, layer, head)


def shown_head(page, layer, head):
    page.wait_for_selector(f"#detail[data-shown$=' {layer} {head}']")


def written(number):
    """A number as text of the page, as a number."""
    return float(number.replace("−", "-").replace(" %", ""))


def numbers_of(line):
    """The numbers behind the last colon of a line of the page: name → number."""
    parts = [part.rpartition(" ") for part in line.rpartition(": ")[2].split(" · ")]
    return {name: written(value) for name, _, value in parts}


def close_to(value, digits=3):
    """Equal to a number that is shown with so many digits; a matrix has 16 bits besides."""
    return pytest.approx(value, rel=0.51 * 10 ** (1 - digits), abs=1e-4)


def drawn(page, number):
    """The matrix that the picture of this number shows."""
    return np.array(page.evaluate("""number => {
        const { values, size } = view.pictures[number].matrix;
        const row = i => [...values.slice(i * size, (i + 1) * size)];
        return Array.from({ length: size }, (_, i) => row(i));
    }""", number))  # fmt: skip


def charted(page):
    """The numbers of each line of the chart, by the places of its marks: 0, the half, the most."""
    low, _, high = page.locator("#change svg > text").all()[:3]
    (bottom, _), (top, most) = (
        (float(mark.get_attribute("y")) - 4, written(mark.text_content())) for mark in (low, high)
    )
    found = {}
    for line in page.locator("#change path[data-line]").all():
        points = [point.split(" ") for point in line.get_attribute("d")[1:].split("L")]
        assert [x for x, _ in points] == sorted((x for x, _ in points), key=float)
        values = [most * (bottom - float(y)) / (bottom - top) for _, y in points]
        found[line.get_attribute("data-line")] = values
    return found


def hover_entry(page, picture, query, key, size):
    """Point at an entry of a drawn matrix of so many tokens."""
    edge, side = picture.evaluate("""canvas => {
        const { edge, side } = view.pictures.find(one => one.canvas === canvas).place;
        return [edge, side];
    }""")
    at = {name: edge + (i + 0.5) * side / size for name, i in (("x", key), ("y", query))}
    picture.hover(position=at)


def test_each_head_shows_every_measure_of_the_data(opened):
    data = made_up_page(layers=3, heads=4, no_map=(1,))
    page = opened(data)
    layers = data["run"]["shown"][0]["layers"]
    shares = ("first", "previous", "itself", "other")
    options = page.locator("#measure option")
    keys = [option.get_attribute("value") for option in options.all()]
    assert keys == ["effect", "negative", "moved", *shares]
    for key in keys:
        page.locator("#measure").select_option(key)
        for number, layer in enumerate(layers):
            values = layer["attends"][key] if key in shares else layer[key]
            for head in range(4):
                shown = cell(page, number, head)
                label = shown.get_attribute("aria-label")
                if values is None:
                    assert label == f"layer {number}, head {head}: no map"
                    continue
                factor = 1 if key in ("effect", "moved") else 100
                said = written(label.rpartition(" ")[2] if factor == 1 else label.split()[-2])
                assert said == pytest.approx(factor * values[head], rel=0.006, abs=0.051)
                assert float(shown.get_attribute("data-value")) == values[head]


def test_the_line_below_the_heads_tells_all_numbers_of_the_head_that_is_pointed_at(opened):
    data = made_up_page()
    page = opened(data)
    cell(page, 2, 1).hover()
    layer = data["run"]["shown"][0]["layers"][2]
    text = page.locator("#heads .readout").text_content()
    assert text.startswith("Layer 2, head 1 (layers.2.self_attn): ")
    numbers = numbers_of(text.replace(" %", ""))
    assert numbers["relative norm of the map"] == close_to(layer["effect"][1])
    assert numbers["share of the sum below 0"] == close_to(100 * layer["negative"][1])
    assert numbers["attention to the first token"] == close_to(100 * layer["attends"]["first"][1])


def test_a_head_opens_with_pictures_of_its_matrices_and_the_numbers_of_any_two_tokens(opened):
    matrices = []
    page = opened(made_up_page([SENTENCE], matrices=matrices))
    assert page.locator("#detail").is_hidden()
    open_head(page, 2, 3)
    assert page.locator("#detail-title").text_content() == "Layer 2, head 3"
    titles = page.locator("#detail h4").all_text_contents()
    assert titles == ["Softmax", "Map", "Sum", "Without the adapter", "Difference"]
    softmax, added, without = (matrices[2][kind][3] for kind in ("softmax", "map", "without"))
    for picture, (query, key) in zip((0, 1, 2), ((4, 2), (8, 0), (0, 0)), strict=True):
        hover_entry(page, page.locator("#detail canvas").nth(picture), query, key, 9)
        line = page.locator("#detail .readout").text_content()
        tokens = [SENTENCE[i].replace(" ", "␣") for i in (query, key)]
        assert line.startswith(f"“{tokens[0]}” ({query}) looks at “{tokens[1]}” ({key}): ")
        assert numbers_of(line) == {
            "softmax": close_to(softmax[query, key]),
            "map": close_to(added[query, key]),
            "sum": close_to(softmax[query, key] + added[query, key]),
            "without the adapter": close_to(without[query, key]),
            "difference": close_to(softmax[query, key] - without[query, key]),
        }
    for number, (expected, scale) in enumerate((
        (softmax, 1), (added, np.abs(matrices[2]["map"]).max()), (softmax + added, 2),
        (without, 1), (softmax - without, 2),
    )):  # fmt: skip
        found = drawn(page, number)
        assert np.abs(found - expected).max() < scale / 32767
        assert (found[np.triu_indices(9, 1)] == 0).all()


def test_squares_have_the_colours_of_their_entries(opened):
    matrices = []
    page = opened(made_up_page([SENTENCE], matrices=matrices), color_scheme="light")
    open_head(page, 1, 2)
    softmax, added = matrices[1]["softmax"][2], matrices[1]["map"][2]
    for number, expected in enumerate((softmax, added, softmax + added)):
        pixels = page.evaluate(
            """number => {
                const { canvas, place } = view.pictures[number];
                const middle = i => Math.round(place.edge + (i + 0.5) * place.side / 9);
                const all = [...Array(9).keys()];
                const context = canvas.getContext("2d");
                const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
                const from = (x, y) => 4 * (middle(y) * canvas.width + middle(x));
                return all.map(y => all.map(x => [...data.slice(from(x, y), from(x, y) + 3)]));
            }""",
            number,
        )
        red, _, blue = np.moveaxis(np.array(pixels), -1, 0)
        assert (np.sign(blue - red) == np.sign(expected)).all()
        assert np.sum(pixels, -1).argmin() == np.abs(expected).argmax()


def test_a_map_inside_the_softmax_shows_what_the_softmax_becomes(opened):
    data = made_up_page([SENTENCE])
    fused = softmax_maps(np.random.default_rng(5), 4, 9)
    for layer in data["run"]["shown"][0]["layers"]:
        layer.update(inside=True, fused=pack(fused))
    page = opened(data)
    open_head(page, 0, 1)
    assert page.locator("#detail h4").nth(2).text_content() == "Softmax with the map inside"
    assert np.abs(drawn(page, 2) - fused[1]).max() < 1 / 32767


def test_a_layer_without_a_map_shows_the_softmax_with_and_without_the_adapter(opened):
    page = opened(made_up_page([SENTENCE], no_map=(0, 1, 2), parts=["LoRA"]))
    keys = [option.get_attribute("value") for option in page.locator("#measure option").all()]
    assert keys == ["moved", "first", "previous", "itself", "other"]
    open_head(page, 0, 0)
    titles = page.locator("#detail h4").all_text_contents()
    assert titles == ["Softmax", "Without the adapter", "Difference"]
    assert page.locator("#next [data-setting]").count() == 2  # one part alone is all of it


def test_a_trained_head_is_shown_beside_each_part_and_alone(opened):
    data = made_up_page([SENTENCE])
    run = data["run"]
    run["head"] = "head"
    for one in run["shown"]:
        one["next"]["head"], one["change"]["head"] = one["next"]["with"], one["change"]["all"]
    page = opened(data)
    captions = page.locator("#next caption").all_text_contents()
    parts = [f"{part} and head" for part in run["parts"]]
    assert captions == ["adapter on", "adapter off", *parts, "head alone"]
    names = page.locator("#change svg > text").all_text_contents()
    assert names[-4:] == ["all together", *captions[2:]]


def test_everything_works_from_the_keyboard(opened):
    page = opened(made_up_page([SENTENCE]))
    assert page.locator("#heads [tabindex='0']").count() == 1
    page.locator("#measure").focus()
    page.keyboard.press("Tab")
    focused = page.locator("[role=gridcell]:focus")
    for key, place in (
        ("ArrowRight", (1, 0)), ("ArrowDown", (1, 1)), ("End", (2, 1)), ("ArrowRight", (2, 1)),
        ("Home", (0, 1)), ("ArrowUp", (0, 0)), ("ArrowUp", (0, 0)), ("ArrowRight", (1, 0)),
    ):  # fmt: skip
        page.keyboard.press(key)
        at = focused.get_attribute("data-layer"), focused.get_attribute("data-head")
        assert tuple(map(int, at)) == place
        assert page.locator("#heads [tabindex='0']").count() == 1
        assert focused.get_attribute("tabindex") == "0"
    assert focused.evaluate("cell => getComputedStyle(cell).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    shown_head(page, 1, 0)
    assert page.locator("#detail-title").evaluate("one => one === document.activeElement")
    assert cell(page, 1, 0).get_attribute("aria-selected") == "true"
    page.keyboard.press("Tab")
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    line = page.locator("#detail .readout").text_content()
    assert line.startswith("“␣little” (1) looks at “The” (0): ")


def test_next_tokens_are_those_of_the_data(opened):
    data = made_up_page()
    page = opened(data)
    expected = data["run"]["shown"][0]["next"]
    names = {"with": "adapter on", "without": "adapter off", "map": "map alone"}
    for key in ("with", "without", "map", "LoRA"):
        shown = page.locator(f"#next [data-setting='{key}']")
        assert shown.locator("caption").text_content() == names.get(key, "LoRA alone")
        tokens = [token.replace(" ", "␣") for token, _ in expected[key]]
        assert shown.locator("th").all_text_contents() == tokens
        shares = [written(one) for one in shown.locator("td:last-child").all_text_contents()]
        assert shares == pytest.approx([100 * share for _, share in expected[key]], abs=0.051)
        # The line is where a bar of the probability without the adapter would end.
        places = shown.locator(".bar").evaluate_all("""all => all.map(bar => {
            const { left, width } = bar.getBoundingClientRect();
            return [...bar.children].map(one => one.getBoundingClientRect()).map(
                (box, i) => ((i ? box.left : box.right) - left) / width);
        })""")
        off = {} if key == "without" else dict(expected["without"])
        for place, (token, share) in zip(places, expected[key], strict=True):
            wanted = [share, off[token]] if token in off else [share]
            assert place == pytest.approx(wanted, abs=0.02)


def test_the_change_through_the_layers_is_that_of_the_data(opened):
    data = made_up_page(layers=5)
    page = opened(data)
    change = data["run"]["shown"][0]["change"]
    shown = charted(page)
    assert list(shown) == ["all", "map", "LoRA"]
    for key, values in shown.items():
        assert values == pytest.approx(change[key], rel=0.006, abs=1e-4)
    names = page.locator("#change svg > text").all_text_contents()
    assert names[-4:] == ["after layer", "all together", "map alone", "LoRA alone"]


def test_another_sentence_shows_its_own_numbers(opened):
    data = made_up_page()
    page = opened(data)
    open_head(page, 0, 2)
    page.locator("#sentence").select_option("1")
    page.wait_for_selector("#detail[data-shown^='1 ']")
    assert page.locator("#tokens li").all_text_contents() == ["Dogs", "␣bark", "."]
    effect = data["run"]["shown"][1]["layers"][0]["effect"][2]
    assert float(cell(page, 0, 2).get_attribute("data-value")) == effect
    assert drawn(page, 0).shape == (3, 3)


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
