"""Tables 2 and 3: the formulas against the printed numbers, and against what is counted."""

from functools import cache

import pytest
import torch
from library.llama_layer import attend, kept_bytes, mapped_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lorada import bake
from lorada.paper.map_costs import (
    MIB,
    PRINTED,
    bytes_here,
    computed_parts,
    cost_table,
    formula_bytes,
)
from lorada.support.models import named_config

HEADS = {"llama-7b": 32, "llama2-70b": 64}
table = cache(cost_table)


@pytest.mark.parametrize("case", PRINTED, ids=lambda case: "-".join(case))
def test_the_formulas_give_the_printed_megabytes(case):
    found = formula_bytes(HEADS[case[0]], full=case[1] == "FMAM")
    training, inference = PRINTED[case]
    decimals = len(training.partition(".")[2])
    # 2.375 is printed as 2.38; Python would round to even.
    assert f"{found['training'] / MIB + 1e-9:.{decimals}f}" == training
    assert found["inference"] == int(inference) * MIB
    h, n, r = HEADS[case[0]], 128, 2
    assert found["training"] == (12 * h * n * n if case[1] == "FMAM" else 2 * h * n * (12 * r + n))


@pytest.mark.parametrize("case", PRINTED, ids=lambda case: "-".join(case))
def test_a_map_as_run_here_takes_the_bytes_that_the_table_says(case):
    name, full = case[0], case[1] == "FMAM"  # the larger model has eight query heads for each V
    model = mapped_model(named_config(name), "full_rank" if full else None).train()
    factors = [p for name, p in model.named_parameters() if ".lmam." in name]
    plain, kept = (
        kept_bytes(lambda base=base: attend(model, base=base), factors) for base in (True, False)
    )
    found, size = bytes_here(HEADS[name], full=full), sum(factor.nbytes for factor in factors)
    assert found["activations"] == kept - plain == 0
    assert found["weights"] == size
    assert found["Adam"] == 2 * size
    assert found["inference"] == size + 4 * HEADS[name] * 128**2


def test_memory_that_is_kept_twice_counts_once_and_parameters_do_not():
    a = torch.ones(10, requires_grad=True)
    b = torch.ones(10, requires_grad=True)
    assert kept_bytes(lambda: (a * 1.0).exp(), [a]) == 40  # exp keeps its result
    assert kept_bytes(lambda: a * b, [a, b]) == 0
    assert kept_bytes(lambda: a * b, [a]) == 40
    assert kept_bytes(lambda: a * a * a, [a]) == 40  # a·a, of 10 numbers


def test_the_flop_counter_agrees_with_the_formulas():
    tokens = 512
    config = named_config("llama-7b")
    config = LlamaConfig(**{**config.to_dict(), "attn_implementation": "sdpa"})
    with torch.device("meta"):
        layer = LlamaDecoderLayer(config, 0)
        hidden, cos = torch.zeros(1, tokens, 4096), torch.zeros(1, tokens, 128)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(hidden, position_embeddings=(cos, cos), attention_mask=None)
    assert counter.get_total_flops() == 2 * computed_parts(config, tokens)["layer"]


def test_table_2_counts_no_multiplication_for_a_merged_lora_or_a_map_that_is_added():
    found = {row[0]: row[3:] for row in table(2).rows}
    assert found["LMAM, map added to Attn: extra multiplications"][0] == 0
    assert found["LMAM, map added to Attn: extra additions"][0] == 32 * 128**2
    model, counts = mapped_model(named_config("llama-7b")), []
    bake(model)
    for base in (False, True):
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            attend(model, base=base)
        counts.append(flops.get_total_flops() // 2)  # a FLOP is a multiplication or its addition
    own = found["LMAM, as run here (own term on V): extra multiplications"]
    assert own == [counts[0] - counts[1]]


def test_the_printed_share_of_additions_is_that_of_128_tokens():
    found = {row[0]: row[3] for row in table(2).rows}
    share = "share of the additions in the model with its head, N = "
    assert (found[f"{share}512"], found[f"{share}128"]) == ("4.86e-06", "1.97e-05")
    # By hand: 32 layers of h n² over the multiplications of LLaMA-7B on 128 tokens.
    by_hand = 32 * 32 * 128**2 / (
        32 * (4 * 128 * 4096**2 + 2 * 128**2 * 4096 + 3 * 128 * 4096 * 11008) + 128 * 4096 * 32000
    )  # fmt: skip
    assert f"{by_hand:.3g}" == found[f"{share}128"]


def test_table_3_has_each_part_of_two_models_and_two_methods():
    found = table(3)
    assert all(len(row) == len(found.columns) for row in found.rows)
    assert len(found.rows) == 4 * 6
