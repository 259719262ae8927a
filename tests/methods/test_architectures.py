"""What works on which architecture: each cell of docs/tested.md is a test here.

A cell that is not run has its reason in ``REASONS``.
"""

import pytest
import torch
from architecture_cells import COLUMNS, DEBERTAS, LENGTH, REASONS, adapted, batch_of, is_slow
from architectures import ARCHITECTURES, logits
from conftest import assert_close
from peft import LoraConfig, get_peft_model

from lorada import BottleneckConfig, LmamConfig
from lorada.attention.hooks import is_deberta
from lorada.functional.maps import low_rank_map
from lorada.tuners.lmam import LmamLayer

pytestmark = pytest.mark.fp64

CELLS = [
    pytest.param(
        name,
        column,
        id=f"{name}-{column}",
        marks=[pytest.mark.fp64(column != "flex = eager")]
        + [pytest.mark.slow] * is_slow(name, column),
    )
    for name in ARCHITECTURES
    for column in COLUMNS
    if (name, column) not in REASONS
]


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(("name", "column"), CELLS)
def test_cell(name, column):
    COLUMNS[column](name)


@pytest.mark.parametrize("name", DEBERTAS)
def test_hooks_do_what_a_map_added_to_the_attention_map_does(name):
    """These models show their attention map to a dropout module: there the sum is literal."""
    changes = {"attn_implementation": "eager"}
    model, twin = adapted(name, **changes), ARCHITECTURES[name](**changes)
    hosts = [layer.host for layer in model.modules() if isinstance(layer, LmamLayer)]
    for host, module in zip(hosts, filter(is_deberta, twin.modules()), strict=True):
        layer = host.lmam
        low_rank = low_rank_map(layer.lora_w_a["default"], layer.lora_w_b["default"], 2.0)

        def add(_, args, attention, low_rank=low_rank):
            full = torch.zeros_like(attention)
            full[..., :LENGTH, :LENGTH] = low_rank
            return attention + full

        module.dropout.register_forward_hook(add)
    batch = {"input_ids": batch_of(name)["input_ids"][[0, 2]]}
    found, expected = logits(model, **batch), logits(twin, **batch)
    assert_close(found, expected)


@pytest.mark.parametrize(
    "other",
    [
        LoraConfig(r=2, target_modules=["value_proj"], init_lora_weights=False),
        BottleneckConfig(placement="series", target_modules=["value_proj"]),
    ],
    ids=["lora", "series"],
)
def test_hooks_see_the_values_that_a_part_made_whether_it_came_first_or_last(other):
    found = []
    parts = [LmamConfig(length=LENGTH, inverse_scale=2.0, init_weights=False), other]
    for order in (parts, parts[::-1]):
        model = ARCHITECTURES["deberta_v2"]()
        for part in order:
            model = get_peft_model(model, part)
        torch.manual_seed(3)
        trained = {n.replace("base_model.model.", ""): p for n, p in model.named_parameters()}
        with torch.no_grad():
            for key in sorted(key for key in trained if "lora" in key):
                trained[key].normal_()
        found.append(logits(model.eval(), **batch_of("deberta_v2")))
    assert_close(found[0], found[1])


@pytest.mark.parametrize("name", DEBERTAS)
def test_no_negative_is_refused_where_the_scores_are_out_of_reach(name):
    with pytest.raises(ValueError, match="ablation='no_negative' changes the scores"):
        adapted(name, LmamConfig(length=LENGTH, ablation="no_negative"))
