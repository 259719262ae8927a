"""Every method says its sizes, their bounds and its learning rate, and keeps to a budget."""

import pytest
from conftest import SIZES as WIDTHS
from transformers import BertConfig, LlamaConfig

from lorada import METHODS
from lorada.compare.size_for import growing_parts, limit_of, size_for
from lorada.methods.lookup import method_named
from lorada.methods.sizes_and_rates import BOUNDS, RATE_RANGE, RATES, SIZES
from lorada.runs.recipe import Recipe

every_method = pytest.mark.parametrize("name", METHODS)
PLACE = "in methods/sizes_and_rates.py"
# Shares of the base, far apart: a size that is not found would leave a method at one of them.
SHARES = ("2%", "8%", "20%")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Configs of a small decoder and a small encoder, by kind of model."""
    folder = tmp_path_factory.mktemp("small")
    sizes = {**WIDTHS, "max_position_embeddings": 64}
    LlamaConfig(**sizes, num_key_value_heads=2).save_pretrained(folder / "llama")
    BertConfig(**sizes).save_pretrained(folder / "roberta")
    return {kind: str(folder / kind) for kind in ("llama", "roberta")}


@every_method
def test_a_method_has_a_learning_rate_of_its_own(name):
    assert name in RATES, f"give the usual learning rate of {name} to RATES {PLACE}"
    assert RATE_RANGE[0] <= RATES[name] <= RATE_RANGE[1]


@every_method
def test_each_part_of_a_method_has_a_size_with_a_bound_or_says_that_it_has_none(name):
    for part in method_named(name).part_names:
        assert part in SIZES, f"name the setting that is the size of {part} in SIZES {PLACE}, or ()"
        if SIZES[part]:
            assert part in BOUNDS, f"say what {SIZES[part][0]} of {part} may be, in BOUNDS {PLACE}"


@every_method
def test_a_method_trains_what_a_budget_allows(name, models):
    method = method_named(name)
    kinds = {*method.parts, *method.unpublished.parts} or {"roberta"}  # which has biases
    model = next(models[kind] for kind in models if kind in kinds)
    recipe = Recipe(method=name, model=model, data="-", output="-")
    sized = [size_for(recipe, share) for share in SHARES]
    counts = [one.counts["trainable"] for one in sized]
    if not growing_parts(recipe):
        assert len(set(counts)) == 1
        return
    for share, one, count in zip(SHARES, sized, counts, strict=True):
        limit = limit_of(share, one.counts["total"])
        assert (count > limit) == one.above
    assert counts[0] < counts[-1], f"{name} has a size, and trains {counts} at budgets of {SHARES}"
