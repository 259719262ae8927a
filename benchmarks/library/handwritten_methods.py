"""The parts of the methods as one would write them in a notebook, for LLaMA, from their equations.

There is no PEFT here, no config and no second adapter: a function changes the ``forward`` of a few
modules of a model, and uses the tensors that it is given. ``measure_method_costs.py`` times lorada
beside these, after checking that loss and gradients are the same.

A function takes the model and the method's tensors by name. A name is ``HOST.ROLE``, and HOST is
the module that is changed, as in ``model.layers.0.self_attn.q_proj.A``.

Shapes: B batch, H query heads, G key/value heads, T tokens, N map length, D head width.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

Tensors = dict[str, Tensor]
Forward = Callable[..., Tensor]


def hosts(tensors: Tensors, child: str = "", marker: str = "") -> Iterator[tuple[str, Tensors]]:
    """Give each HOST of a method with its tensors by role.

    Args:
        tensors: those of all parts of a method.
        child: if given, names are HOST.child.ROLE, and others are left out.
        marker: if given, hosts without a tensor that has this in its name are left out.
    """
    found: dict[str, Tensors] = defaultdict(dict)
    marked = set()
    for name, tensor in tensors.items():
        host, _, role = name.rpartition(".")
        if not child or host.endswith(f".{child}"):
            host = host.removesuffix(f".{child}") if child else host
            found[host][role] = tensor
            if marker in name:
                marked.add(host)
    yield from ((host, own) for host, own in found.items() if host in marked)


def beside(model: nn.Module, name: str, term: Forward) -> None:
    """Make the linear of this name compute W x + term(x)."""
    linear = model.get_submodule(name)
    plain = linear.forward
    linear.forward = lambda x: plain(x) + term(x)


# The map and shifted attention: LLaMA's attention, written out.


def attention(
    self: nn.Module,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    *,
    mask_of: Callable[[int, int], Tensor] | None = None,
    map_of: Callable[[], Tensor] | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """LLaMA's attention, softmax(Q Kᵀ / √d) V, with a mask of its own and a map added.

    Args:
        self: the attention module.
        hidden_states: (B, T, width).
        position_embeddings: cosines and sines of the positions.
        attention_mask: the model's mask, unless ``mask_of`` is given.
        mask_of: makes a mask (H, T, T) from H and T.
        map_of: makes the map A (H, N, N), whose A V is added to the first N tokens.
    """
    shape = (*hidden_states.shape[:-1], -1, self.head_dim)
    query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
    key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
    value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
    query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    if mask_of is not None:
        attention_mask = mask_of(query.shape[1], query.shape[2])[None]
    output, _ = sdpa_attention_forward(self, query, key, value, attention_mask)
    if map_of is not None:
        a = map_of()  # (H, N, N)
        n = min(a.shape[-1], query.shape[2])
        term = a[:, :n, :n] @ repeat_kv(value, self.num_key_value_groups)[:, :, :n]
        output = output + F.pad(term.transpose(1, 2), (0, 0, 0, 0, 0, query.shape[2] - n))
    return self.o_proj(output.flatten(2)), None


def lmam(model: nn.Module, tensors: Tensors) -> None:
    """O = Attn V + A V with A = tril((W_a + PE)(W_b + PE)), or tril(W + PE PEᵀ) of full rank.

    It is for batches without pads or padded on the right, where token i is in slot i.
    """
    for name, own in hosts(tensors, "lmam"):
        length = own["w_a" if "w_a" in own else "w"].shape[1]
        pe = 10000.0 ** (-2 * torch.arange(length) / length)

        def map_of(own: Tensors = own, pe: Tensor = pe) -> Tensor:
            if "w" in own:
                return (own["w"] + pe[:, None] * pe).tril()
            return ((own["w_a"] + pe[:, None]) @ (own["w_b"] + pe)).tril()

        module = model.get_submodule(name)
        module.forward = partial(attention, module, map_of=map_of)


def shifted_attention(model: nn.Module) -> None:
    """S²-Attn: causal attention within groups of T/4 tokens, shifted by half for half the heads."""

    @cache
    def mask_of(heads: int, length: int) -> Tensor:
        size = math.ceil(length / 4)
        token = torch.arange(length)
        group = torch.stack([token // size, (token + size - size // 2) // size])
        near = (group[:, :, None] == group[:, None, :]).tril()
        return near[[0] * (heads - heads // 2) + [1] * (heads // 2)]

    for layer in model.model.layers:
        layer.self_attn.forward = partial(attention, layer.self_attn, mask_of=mask_of)


# Adapters.


def adapter_ffn(model: nn.Module, tensors: Tensors, *, scale: float, dropout: float = 0.0) -> None:
    """Adapter-FFN: h + FFN(norm(h)) + s (U relu(D h + b_D) + b_U), h the residual stream."""
    for name, own in hosts(tensors, "bneck"):
        layer = model.get_submodule(name.removesuffix(".mlp"))

        def forward(h: Tensor, self: nn.Module = layer, own: Tensors = own, **kw: object) -> Tensor:
            h = h + self.self_attn(self.input_layernorm(h), **kw)[0]
            inner = torch.relu(F.linear(h, own["down"], own["down_bias"]))
            inner = F.dropout(inner, dropout, self.training)
            adapter = scale * F.linear(inner, own["up"], own["up_bias"])
            return h + self.mlp(self.post_attention_layernorm(h)) + adapter

        layer.forward = forward


def series(model: nn.Module, tensors: Tensors) -> None:
    """Series: y + U tanh(D y), y = W x."""
    for name, own in hosts(tensors, marker="bneck_series_"):
        linear = model.get_submodule(name.replace("bneck_series_", ""))
        plain = linear.forward

        def forward(x: Tensor, plain: Forward = plain, own: Tensors = own) -> Tensor:
            y = plain(x)
            return y + F.linear(torch.tanh(F.linear(y, own["down"])), own["up"])

        linear.forward = forward


def parallel(model: nn.Module, tensors: Tensors) -> None:
    """Parallel: W x + U tanh(D x)."""
    for name, own in hosts(tensors, marker="bneck_parallel_"):

        def term(x: Tensor, own: Tensors = own) -> Tensor:
            return F.linear(torch.tanh(F.linear(x, own["down"])), own["up"])

        beside(model, name.replace("bneck_parallel_", ""), term)


# Terms beside a matrix.


def quanta(model: nn.Module, tensors: Tensors, dims: tuple[int, ...]) -> None:
    """QuanTA: W x + T x − S x, both products of gates on pairs of axes, the last pair first."""
    pairs = [(a, b) for a in range(len(dims), 1, -1) for b in range(a - 1, 0, -1)]

    def gates(x: Tensor, own: Tensors, start: str) -> Tensor:
        x = x.reshape(-1, *dims)
        for a, b in pairs:
            moved = x.movedim((a, b), (-2, -1))
            moved = (moved.flatten(-2) @ own[f"{start}{a}_{b}"].T).view(moved.shape)
            x = moved.movedim((-2, -1), (a, b))
        return x.flatten(1)

    for name, own in hosts(tensors, "gates"):
        rows = model.get_submodule(name).out_features

        def term(x: Tensor, own: Tensors = own, rows: int = rows) -> Tensor:
            change = gates(x, own, "") - gates(x, own, "start_")
            return change[:, :rows].view(*x.shape[:-1], rows)

        beside(model, name, term)


def sora(model: nn.Module, tensors: Tensors, *, alpha: float) -> None:
    """SoRA: W x + (α/r) B (g ⊙ A x)."""
    for name, own in hosts(tensors, marker=".gate"):

        def term(x: Tensor, own: Tensors = own) -> Tensor:
            gated = own["gate"] * F.linear(x, own["A"])
            return alpha / len(own["gate"]) * F.linear(gated, own["B"])

        beside(model, name, term)


def lamda(model: nn.Module, tensors: Tensors) -> None:
    """LaMDA: (W − U Σ Vᵀ) x + B M A x, U, Σ and A = Vᵀ the leading singular directions of W."""
    for name, own in hosts(tensors, marker=".M"):
        linear = model.get_submodule(name)
        linear.weight.data -= own["U"] @ torch.diag(own["sigma"]) @ own["A"]

        def term(x: Tensor, own: Tensors = own) -> Tensor:
            return F.linear(F.linear(F.linear(x, own["A"]), own["M"]), own["B"])

        beside(model, name, term)


def omoe(model: nn.Module, tensors: Tensors, *, scale: float, dropout: float) -> None:
    """OMoE: W x + Σ g_i u_i: DoRA experts, made orthogonal token by token, weighed by a router."""
    for name, own in hosts(tensors, marker=".router"):
        linear = model.get_submodule(name)
        plain = linear.forward

        def forward(
            x: Tensor, linear: nn.Module = linear, plain: Forward = plain, own: Tensors = own
        ) -> Tensor:
            y = plain(x)
            dropped = F.dropout(x, dropout, model.training)
            found: list[Tensor] = []
            for down, up, size in zip(own["down"], own["up"], own["magnitude"], strict=True):
                with torch.no_grad():  # DoRA takes the norms as constants
                    norms = (linear.weight + scale * up @ down).norm(dim=1)
                low = scale * F.linear(F.linear(dropped, down), up)
                expert = size / norms * (y + low) - y
                for other in found:
                    share = (expert * other).sum(-1, keepdim=True)
                    expert = expert - share / (other * other).sum(-1, keepdim=True) * other
                found.append(expert)
            gates = torch.softmax(F.linear(x, own["router"]), -1)
            return y + sum(gates[..., i : i + 1] * u for i, u in enumerate(found))

        linear.forward = forward


# Training procedures: what happens before a step, and what replaces the optimizer's step.


def train_some_layers(
    layers: list[list[nn.Parameter]], count: int, seed: int
) -> list[nn.Parameter]:
    """Draw ``count`` layers, let only them have gradients, and return their parameters."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ones(len(layers), dtype=torch.float64)
    chosen = torch.multinomial(weights, count, generator=generator).tolist()
    for index, layer in enumerate(layers):
        for parameter in layer:
            parameter.requires_grad_(index in chosen)
    return [parameter for index in chosen for parameter in layers[index]]


@torch.no_grad()
def galore_step(
    matrices: Iterable[nn.Parameter], state: dict[nn.Parameter, dict], *, lr: float, rank: int
) -> None:
    """GaLore: AdamW on Pᵀ G or G Qᵀ, which projects the shorter side of G.

    P or Q holds singular vectors of the first gradient of a matrix.
    """
    for weight in matrices:
        gradient = weight.grad
        if gradient is None:
            continue
        tall, own = gradient.shape[0] >= gradient.shape[1], state.setdefault(weight, {})
        if not own:
            left, _, right = torch.linalg.svd(gradient, full_matrices=False)
            own |= {"t": 0, "m": 0, "v": 0, "side": right[:rank] if tall else left[:, :rank]}
        low = gradient @ own["side"].T if tall else own["side"].T @ gradient
        own["t"] += 1
        own["m"] = 0.9 * own["m"] + 0.1 * low
        own["v"] = 0.999 * own["v"] + 0.001 * low**2
        unbiased = own["m"] / (1 - 0.9 ** own["t"]), own["v"] / (1 - 0.999 ** own["t"])
        low = unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        weight -= lr * (low @ own["side"] if tall else own["side"] @ low)


@torch.no_grad()
def soft_threshold(gates: Iterable[Tensor], xi: float) -> None:
    """The proximal step g ← sign(g) max(|g| − ξ, 0)."""
    for gate in gates:
        gate.copy_(gate.sign() * (gate.abs() - xi).clamp(min=0))


class FrozenColumns:
    """LaMDA: the first columns of each B, ``share`` of all, get no gradient and do not change."""

    def __init__(self, matrices: list[nn.Parameter]) -> None:
        self.matrices, self.share = matrices, 0.0
        for matrix in matrices:
            matrix.register_hook(self.without_frozen)

    def frozen(self, matrix: Tensor) -> Tensor:
        """The frozen columns of a matrix."""
        return matrix[:, : int(self.share * matrix.shape[1] + 1e-9)]

    def without_frozen(self, gradient: Tensor) -> Tensor:
        """A gradient that is zero in the frozen columns."""
        gradient = gradient.clone()
        self.frozen(gradient).zero_()
        return gradient

    def keep(self, optimizer_step: Callable[[], object]) -> None:
        """Run an optimizer step and put the frozen columns back."""
        kept = [self.frozen(matrix.detach()).clone() for matrix in self.matrices]
        optimizer_step()
        for matrix, columns in zip(self.matrices, kept, strict=True):
            self.frozen(matrix.data).copy_(columns)
