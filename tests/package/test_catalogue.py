"""The catalogue of methods: made of METHODS, and its pictures of where methods sit in a layer."""

import xml.etree.ElementTree as ElementTree

import catalogue_page
import pytest
from placement_picture import picture, placements

from lorada import METHODS

LAYER = "base_model.model.model.layers.0."


@pytest.mark.more
def test_the_catalogue_and_its_pictures_are_what_their_script_writes():
    methods = catalogue_page.entries()
    reminder = "run: python scripts/catalogue_page.py"
    assert catalogue_page.PAGE.read_text(encoding="utf-8") == catalogue_page.page(methods), reminder
    drawn = {
        path.name: path.read_text(encoding="utf-8")
        for path in catalogue_page.PICTURES.glob("*.svg")
    }
    assert drawn == catalogue_page.pictures(methods), reminder


def test_the_catalogue_has_every_method_once_with_its_formula_and_purpose():
    text = catalogue_page.PAGE.read_text(encoding="utf-8")
    for name, method in METHODS.items():
        assert text.count(f"{{ #{name} }}") == 1
        assert f"`{method.formula}`" in text
        assert f"**When to try it:** {method.when}." in text


def test_parts_and_weights_are_found_by_the_names_of_what_trains():
    trained = [
        f"{LAYER}self_attn.q_proj.lora_A.default.weight", f"{LAYER}self_attn.lmam.lora_w_a",
        f"{LAYER}mlp.down_proj.bias", f"{LAYER}mlp.up_proj.bias", f"{LAYER}mlp.up_proj.weight",
        "model.embed_tokens.weight", "model.layers.1.self_attn.v_proj.weight",
    ]  # fmt: skip
    assert placements(trained) == {
        "q": "part", "up": "weights", "down": "biases", "the map": "part",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"no place for self_attn\.gates"):
        placements([f"{LAYER}self_attn.gates"])


def test_a_picture_has_colour_where_something_trains_and_nowhere_else():
    root = ElementTree.fromstring(picture({"v": "part", "the map": "part"}, "a title"))
    coloured = [one for one in root.iter() if one.tag.endswith("rect") and "class" in one.attrib]
    words = [one.text for one in root.iter() if one.tag.endswith("text")]
    assert len(coloured) == 2
    assert words.count("map") == 1
    assert "adapter" not in words
