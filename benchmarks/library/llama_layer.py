"""What a map adds to one layer at the shape of LLaMA-7B: bytes kept and operations."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lorada.paper import map_costs
from lorada.support.models import named_config

MEGABYTE = 2**20


def kept_for_backward(batch: int) -> float:
    """Megabytes that a layer keeps beyond attention alone, the map's factors included."""
    model = map_costs.mapped_model(named_config("llama-7b")).train()

    def kept(*, base: bool) -> int:
        return map_costs.kept_bytes(lambda: map_costs.attend(model, base=base, batch=batch), [])

    return (kept(base=False) - kept(base=True)) / MEGABYTE


def term_operations() -> dict[str, Any]:
    """Floating-point operations of the term in a layer of 512 tokens, n = 128."""
    config = named_config("llama-7b")
    model = map_costs.mapped_model(config)
    counts = []
    for base in (False, True):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            map_costs.attend(model, base=base)
        counts.append(counter.get_total_flops())
    width, inner, tokens = config.hidden_size, config.intermediate_size, map_costs.TOKENS
    layer = 2 * tokens * (4 * width**2 + 3 * width * inner) + 4 * tokens**2 * width
    term = counts[0] - counts[1]
    shares = [row for row in map_costs.cost_table(2)["rows"] if row[0].startswith("share")]
    return {"term": term, "layer": layer, "share": term / layer, "table_2": shares}
