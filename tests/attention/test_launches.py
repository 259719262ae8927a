"""How many launches and how much memory a map takes, counted on a fake GPU."""

from typing import Any

import pytest
import torch
from conftest import TINY
from fake_gpu import GPU, Launches, fake_gpu, move
from peft import get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache

from lorada import LmamConfig
from lorada.tuners.lmam import bake

PADDED = ["padded", "unpadded"]


def decoder_of(layers: int, mapped: bool, **options) -> nn.Module:
    """A decoder in bf16 with the heads of LLaMA-3-8B, and a map of 128 tokens or none."""
    sizes = {"num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8}
    with torch.device("meta"):
        model = TINY["llama"](hidden_size=256, max_position_embeddings=2048, **sizes)
        model = model.to(torch.bfloat16).requires_grad_(False)
        return get_peft_model(model, LmamConfig(**options)) if mapped else model


def rows_of(size: int, tokens: int, padded: bool) -> dict[str, Tensor]:
    mask = torch.ones(size, tokens, dtype=torch.long, device=GPU)
    return {"attention_mask": mask} if padded else {}


def launches_of_step(model: nn.Module, size: int, tokens: int, padded: bool) -> list[int]:
    """The launches of a forward and of a backward pass."""
    with fake_gpu({}):
        move(model)
        states = torch.zeros(size, tokens, 256, device=GPU, dtype=torch.bfloat16)
        states.requires_grad_()
        with Launches() as forward:
            # With a cache: without one transformers makes a mask of tensors that have no numbers.
            found = model.train()(
                inputs_embeds=states, use_cache=True, **rows_of(size, tokens, padded)
            )
        with Launches() as backward:
            found.logits.sum().backward()
        return [forward.count, backward.count]


def launches_of_token(
    model: nn.Module, size: int, tokens: int, padded: bool, baked: bool = True, shortest: int = -1
) -> list[int]:
    """The launches of a token behind a prompt, whose shortest row is known, and another token."""
    cache = DynamicCache(config=model.config)
    with fake_gpu({}) as gpu, torch.no_grad():
        move(model.eval())
        if baked:
            bake(model)
        for seen, new in ((tokens, tokens), (tokens + 1, 1), (tokens + 2, 1)):
            ids = torch.zeros(size, new, dtype=torch.long, device=GPU)
            gpu.sent = shortest if shortest < 0 else shortest + seen - tokens
            with Launches() as token:
                model(input_ids=ids, cache=cache, **rows_of(size, seen, padded))
        return [token.count]


def added_by_a_layer(launches: Any, *given: Any, **options: Any) -> list[float]:
    """The launches by which a layer with a map has more than one without."""
    few, many = (
        [launches(decoder_of(layers, mapped, **options), *given) for mapped in (True, False)]
        for layers in (1, 3)
    )
    one, three = ([a - b for a, b in zip(*both, strict=True)] for both in (few, many))
    return [(b - a) / 2 for a, b in zip(one, three, strict=True)]


@pytest.mark.parametrize(
    ("tokens", "padded", "options", "most"),
    [
        (512, True, {}, (15, 25)),
        (512, False, {}, (9, 18)),
        # Scale and tiles of the map, and the scale once more in backward.
        (128, False, {"heads": 8, "inverse_scale": 255.0}, (11, 20)),
    ],
)
def test_a_map_takes_few_launches_of_a_training_step(tokens, padded, options, most):
    forward, backward = added_by_a_layer(launches_of_step, 8, tokens, padded, **options)
    assert forward <= most[0]
    assert backward <= most[1]


@pytest.mark.more
@pytest.mark.parametrize("padded", [True, False], ids=PADDED)
def test_a_map_takes_few_launches_of_a_token_under_it(padded):
    (launches,) = added_by_a_layer(launches_of_token, 32, 64, padded)
    assert launches <= 7


@pytest.mark.more
@pytest.mark.parametrize("baked", [True, False], ids=["baked", "factors"])
@pytest.mark.parametrize("padded", [True, False], ids=PADDED)
def test_a_map_takes_no_launch_of_a_token_that_every_row_has_past_it(padded, baked):
    assert added_by_a_layer(launches_of_token, 32, 200, padded, baked, 127) == [0]
    (under,) = added_by_a_layer(launches_of_token, 32, 200, True, baked, 126)
    assert under > 0  # the second token is the last under the map
