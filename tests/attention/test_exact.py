"""One matrix: whatever form a batch comes in, every sample gets the numbers it gets alone.

The reference of every cell is the plain run: one sample, no padding, no cache. Samples are
continued greedily, so that a cell that decodes has the same tokens to compare.
"""

import inspect
from itertools import product

import exact_page
import pytest
import torch
from conftest import assert_close
from covering_cases import covering
from exact_cells import (
    CELLS,
    COVERED,
    DECODERS,
    GREEDY,
    LENGTH,
    NEW,
    PROMPTS,
    VARIANTS,
    adapted,
    alone,
    assert_as_plain,
    forward,
    pad,
    plain_run,
    written_out,
)
from transformers import DynamicCache, MistralForCausalLM

from lorada.attention.observation import Observation, observe
from lorada.tuners.lmam import LmamLayer

pytestmark = pytest.mark.fp64


@pytest.mark.parametrize(("name", "cell", "variant"), COVERED, ids=lambda part: part)
def test_every_form_of_a_batch_gives_the_numbers_of_the_plain_run(name, cell, variant):
    samples, expected = plain_run(name, variant)
    found = CELLS[cell](adapted(name, variant), samples)
    assert_as_plain(cell, samples, found, expected)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_tokens_are_counted_behind_a_window_by_either_name_of_the_cache(name):
    if name not in inspect.signature(MistralForCausalLM.forward).parameters:
        name = "past_key_values"  # an older transformers has no other
    model = adapted("mistral", "map")
    store = DynamicCache(config=model.config)
    steps, at = [], 5  # positions from 5 on are no count of tokens
    for ids in PROMPTS[3].split([4, 1, 1, 6]):
        positions = torch.arange(at, at := at + len(ids))[None]
        steps.append(forward(model, input_ids=ids[None], position_ids=positions,
                             use_cache=True, **{name: store}))  # fmt: skip
    assert_close(torch.cat(steps, 1)[0], alone(model, PROMPTS[3]))


BEAMS = list(
    product(
        DECODERS, ["map", "no_negative", "softmax", "full_rank", "behind_a_prefix"],
        ["dynamic", "static"],
    )
)  # fmt: skip


@pytest.mark.parametrize(("name", "variant", "cache"), covering(BEAMS, 1, 2))
def test_beams_of_a_batch_are_those_of_each_sample_alone_without_a_cache(name, variant, cache):
    model = adapted(name, variant)
    ids, mask = pad(PROMPTS, "left")
    options = {**GREEDY, "num_beams": 3, "return_dict_in_generate": True, "output_scores": True}
    together = model.generate(
        input_ids=ids, attention_mask=mask, cache_implementation=cache, **options
    )
    for i, prompt in enumerate(PROMPTS):
        single = model.generate(input_ids=prompt[None], use_cache=False, **options)
        assert together.sequences[i, -NEW:].tolist() == single.sequences[0, -NEW:].tolist()
        assert_close(together.sequences_scores[i], single.sequences_scores[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_plain_run_is_not_that_of_the_base(variant):
    model = adapted("llama", variant)
    sample = PROMPTS[3]
    with_map = alone(model, sample)
    with model.disable_adapter():
        changed = (with_map - alone(model, sample)).abs().amax(-1)
    first = 1 if variant == "no_negative" else 0  # one key: softmax is 1
    reached = changed[-LENGTH:] if variant == "end" else changed[first:]
    assert (reached > 0.05).all()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "bert"])
@pytest.mark.parametrize("where", ["first n (Eqs. 14-15)", "last n (Eq. 16)"])
def test_map_lies_where_the_equations_index_the_attention_map(name, where, implementation):
    """The paper's own indexing of the matrix, written out on the map of each layer."""
    start = where.startswith("first")
    model = adapted(name, "map", align="start" if start else "end")
    model.base_model.model.set_attn_implementation(implementation)
    ids = torch.stack([PROMPTS[3], PROMPTS[3] + 1])
    seen: list[Observation] = []
    with observe(seen.append):
        forward(model, input_ids=ids)
    layers = [m for m in model.modules() if isinstance(m, LmamLayer)]
    assert len(seen) == len(layers) == 2
    for one, layer in zip(seen, layers, strict=True):
        low_rank = written_out(layer)
        low_rank = low_rank.tril() if name != "bert" else low_rank
        full = torch.zeros(len(low_rank), ids.shape[1], ids.shape[1])
        part = slice(LENGTH) if start else slice(-LENGTH, None)
        full[:, part, part] = low_rank
        value = one.call.value.repeat_interleave(4 // one.call.value.shape[1], 1)
        assert_close(one.term.transpose(1, 2), full @ value)


def test_page_has_the_matrix():
    text = exact_page.PAGE.read_text(encoding="utf-8")
    assert text == exact_page.page(text)
