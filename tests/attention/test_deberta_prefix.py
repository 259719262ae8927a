"""A prefix before the keys of DeBERTa-v2: against its formula, number by number."""

from inspect import signature

import pytest
import torch
from architectures import ARCHITECTURES, inputs, logits
from conftest import assert_close, assert_same_gradients
from peft import PeftModel, get_peft_model
from stacks import lmam, moved
from torch import nn

from lorada import LoradaConfig, PrefixConfig

pytestmark = pytest.mark.fp64

LENGTH = 3


def adapted(*others) -> PeftModel:
    """A tiny DeBERTa-v2 with a large prefix, the same for the same arguments."""
    base, prefix = ARCHITECTURES["deberta_v2"](), PrefixConfig(length=LENGTH)
    torch.manual_seed(1)
    return moved(base, LoradaConfig(parts=[prefix, *others]) if others else prefix)


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if type(m).__name__.startswith("Disentangled")}


def by_hand(module: nn.Module, x, mask, relative_pos, relative) -> torch.Tensor:
    """softmax([q_i · P_k, s_ij] ) [P_v; V], s_ij of the DeBERTa paper's Eq. 4, pair by pair."""
    heads, width = module.num_attention_heads, module.attention_head_size
    scale = torch.tensor(3.0 * width).sqrt()  # in fp32, as the model takes it

    def split(states):
        return states.unflatten(-1, (heads, width)).transpose(-2, -3)

    q, k, v = (split(p(x)) for p in (module.query_proj, module.key_proj, module.value_proj))
    positions_q, positions_k = split(module.query_proj(relative)), split(module.key_proj(relative))
    prefix_k, prefix_v = (split(p) for p in module.prefix.prefix("default"))
    output, tokens, last = torch.zeros_like(v), x.shape[1], 2 * module.pos_ebd_size - 1
    for b in range(len(x)):
        for h in range(heads):
            for i in range(tokens):
                scores = [q[b, h, i] @ key / scale for key in prefix_k[h]]
                values = list(prefix_v[h])
                for j in range(tokens):
                    if not mask[b, 0, i, j]:
                        continue
                    d = min(max(int(relative_pos[0, i, j]) + module.pos_ebd_size, 0), last)
                    s = q[b, h, i] @ k[b, h, j] + q[b, h, i] @ positions_k[h, d]
                    scores.append((s + k[b, h, j] @ positions_q[h, d]) / scale)
                    values.append(v[b, h, j])
                output[b, h, i] = torch.stack(scores).softmax(0) @ torch.stack(values)
    return output.transpose(1, 2).flatten(2)


def first_attention(model: nn.Module, batch: dict) -> tuple[nn.Module, dict, torch.Tensor]:
    """The first attention of a model, what it is given for a batch, and its output."""
    module, seen = next(iter(attentions(model).values())), []

    def keep(_, args, kwargs, output):
        given = signature(type(module).forward).bind(module, *args, **kwargs)
        seen.append((module, given.arguments, output[0]))

    handle = module.register_forward_hook(keep, with_kwargs=True)
    model(**batch)
    handle.remove()
    return seen[0]


def test_attention_is_its_formula_in_values_and_gradients():
    module, given, output = first_attention(adapted(), inputs("deberta_v2"))
    names = "hidden_states", "attention_mask", "relative_pos", "rel_embeddings"
    expected = by_hand(module, *(given[name] for name in names))
    parts = [module.prefix.lora_key["default"], module.prefix.lora_value["default"]]
    assert_same_gradients(output, expected, parts, more_than=0.01)


def test_without_an_active_prefix_the_module_is_what_it_was():
    model, batch = adapted(), inputs("deberta_v2")
    plain = logits(ARCHITECTURES["deberta_v2"](), **batch)
    changed = logits(model, **batch)
    assert not torch.allclose(changed, plain, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(logits(model, **batch), plain)
    base = model.unload()
    assert all("forward" not in module.__dict__ for module in attentions(base).values())
    assert torch.equal(logits(base, **batch), plain)


def test_a_map_beside_the_prefix_adds_the_same_term_as_alone():
    batch = inputs("deberta_v2")
    both, prefix = adapted(lmam()), adapted()
    alone = get_peft_model(ARCHITECTURES["deberta_v2"](), lmam()).eval()
    for other in (prefix, alone):
        other.load_state_dict(both.state_dict(), strict=False)

    with alone.disable_adapter():
        plain = first_attention(alone, batch)[2]
    term = first_attention(alone, batch)[2] - plain
    assert term.abs().max() > 1e-2
    assert_close(first_attention(both, batch)[2] - first_attention(prefix, batch)[2], term)
