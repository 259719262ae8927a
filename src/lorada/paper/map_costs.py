"""Tables 2 and 3: what a map costs in one layer, by the paper's formulas and as it is run here.

Table 2: a map adds h·min(n,N)² numbers to the attention map, and needs no multiplications. The
paper's ``t_a``/``t_m`` weighting is left out of both sides. Table 3, for 16-bit numbers (Adam's in
32 bits):

    training:  weights 4hnr + gradients 4hnr + Adam 16hnr + activations 2hnn = 2hn(12r + n) bytes
    inference: the finished map, 2hnn bytes

A full-rank map (FMAM) has one weight of n·n where LMAM has two of n·r.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from lorada.support.models import MODELS, named_config

LENGTH, TOKENS, RANK = 128, 512, 2  # n and N of section 3.3, and r
MIB = 2**20
Bytes = dict[str, int]  # part of ``FORMULAS`` → bytes


class PrintedMegabytes(NamedTuple):
    """Table 3's numbers of a model and a method, with the digits that the paper prints."""

    training: str
    inference: str


class Formula(NamedTuple):
    """The bytes of a part as the paper writes them."""

    low_rank: str  # LMAM
    full_rank: str  # FMAM


@dataclass(frozen=True)
class CostTable:
    """Table 2 or 3 of the paper."""

    title: str
    columns: list[str]
    rows: list[list[Any]]  # texts and numbers, one for each column
    notes: list[str]


PRINTED = {
    ("llama-7b", "LMAM"): PrintedMegabytes("1.19", "1"),
    ("llama-7b", "FMAM"): PrintedMegabytes("6", "1"),
    ("llama2-70b", "LMAM"): PrintedMegabytes("2.38", "2"),
    ("llama2-70b", "FMAM"): PrintedMegabytes("12", "2"),
}
FORMULAS = {
    "weights": Formula("4hnr", "2hnn"),
    "gradients": Formula("4hnr", "2hnn"),
    "Adam": Formula("16hnr", "8hnn"),
    "activations": Formula("2hnn", "—"),
    "training": Formula("2hn(12r+n)", "12hnn"),
    "inference": Formula("2hnn", "2hnn"),
}


def cost_table(number: int) -> CostTable:
    """Table 2 (operations) or 3 (memory)."""
    tables = {2: _operations_table, 3: _memory_table}
    return tables[number]()


def _operations_table() -> CostTable:
    """Table 2: what LoRA and a map add to one layer of LLaMA-7B at inference."""
    config = named_config("llama-7b")
    heads = config.num_attention_heads
    width = config.hidden_size
    additions = heads * LENGTH**2  # of the map to the attention map
    term_multiplications = LENGTH**2 * width  # of the map with V
    rows: list[list[Any]] = [
        ["LoRA, merged: extra multiplications", "0", "0", 0],
        ["LoRA, merged: extra additions", "0", "0", 0],
        ["LMAM, map added to Attn: extra multiplications", "0", "0", 0],
        ["LMAM, map added to Attn: extra additions", "h·min(n,N)²", "h·min(n,N)²", additions],
        ["LMAM, as run here (own term on V): extra multiplications", "min(n,N)²·d", "—",
         term_multiplications],
    ]  # fmt: skip
    for tokens in (TOKENS, LENGTH):
        share = additions / sum(computed_parts(config, tokens).values())
        title = f"share of the additions in the model with its head, N = {tokens}"
        rows.append([title, "L(4Nd²+2N²d+3Ndf)+NdV", "1.97e-5", f"{share:.3g}"])
    layer_multiplications = computed_parts(config, TOKENS)["layer"]
    term_share = term_multiplications / layer_multiplications
    return CostTable(
        title="Table 2: extra operations of LoRA and LMAM in one layer of LLaMA-7B at inference "
        f"(N = {TOKENS}, n = {LENGTH}, h = {heads}, d = {width})",
        columns=["what", "formula", "printed", "computed"],
        rows=rows,
        notes=[
            f"With the printed N = {TOKENS} no count that we tried gives 1.97e-5; on a text of n "
            "tokens the share of the model with its head rounds to the printed number.",
            "Added to the attention map, LMAM needs no multiplications. Here its product with V is "
            "a separate term, so that fused kernels, which never form the attention map, can be "
            f"used; it costs {term_share:.2%} of the layer's multiplications.",
        ],
    )


def computed_parts(config: Any, tokens: int) -> dict[str, float]:
    """Multiplications of one layer, and of its share of the model's head."""
    width = config.hidden_size
    projections = 4 * tokens * width**2  # query, key, value, output
    attention = 2 * tokens**2 * width  # scores, and their product with V
    mlp = 3 * tokens * width * config.intermediate_size
    return {
        "layer": projections + attention + mlp,
        "head": tokens * width * config.vocab_size / config.num_hidden_layers,
    }


def _memory_table() -> CostTable:
    """Table 3: the memory of each part of a map, by the paper's formulas and as it is run here."""
    rows: list[list[Any]] = []
    for (model, method), printed in PRINTED.items():
        heads = named_config(model).num_attention_heads
        full = method == "FMAM"
        by_formula = formula_bytes(heads, full=full)
        run_here = bytes_here(heads, full=full)
        for part, formula in FORMULAS.items():
            rows.append(
                [
                    MODELS[model].title,
                    method,
                    part,
                    formula.full_rank if full else formula.low_rank,
                    # The paper prints sums alone, not the parts.
                    printed._asdict().get(part, ""),
                    round(by_formula[part] / MIB, 4),
                    round(run_here[part] / MIB, 4),
                ]
            )
    return CostTable(
        title=f"Table 3: extra memory of a map in one layer (n = {LENGTH}, r = {RANK})",
        columns=[
            "model", "method", "part", "bytes", "printed MB", "formula MiB",
            "as run here MiB",
        ],
        rows=rows,
        notes=[
            "The paper's form is Attn + Attn_s with 16-bit numbers. Its activations are 2hnn only "
            f"for N = n: autograd keeps Attn for the softmax and the sum for V, which is 2hNN more "
            f"({2 * 32 * TOKENS**2 // MIB} MiB for LLaMA-7B at N = {TOKENS}), not 2hnn.",
            "Here factors, their gradients and the map are 32-bit numbers, twice the paper's. The "
            "map is computed again for the backward pass, so autograd keeps only the factors and "
            "the values, which attention keeps anyway.",
            "Inference here keeps the factors as well as the finished map, which bake() makes.",
        ],
    )  # fmt: skip


def formula_bytes(heads: int, *, full: bool) -> Bytes:
    """Table 3's formulas; FMAM's 12hnn has no activations, because its map is its weight."""
    map_bytes = 2 * heads * LENGTH**2  # 16-bit numbers
    if full:
        return _memory_parts(map_bytes, 4 * map_bytes, 0, map_bytes)
    weights = 4 * heads * LENGTH * RANK  # two factors
    return _memory_parts(weights, 4 * weights, map_bytes, map_bytes)


def bytes_here(heads: int, *, full: bool) -> Bytes:
    """The same as ``lorada train`` runs a map: in 32 bits, and autograd keeps nothing for it."""
    columns = LENGTH if full else 2 * RANK
    weights = 4 * heads * LENGTH * columns
    map_bytes = 4 * heads * LENGTH**2
    # Inference keeps the weights beside the finished map.
    return _memory_parts(weights, 2 * weights, 0, map_bytes + weights)


def _memory_parts(weights: int, moments: int, activations: int, inference: int) -> Bytes:
    """The bytes of each part, and of training, which has them all; gradients are as weights."""
    parts = {"weights": weights, "gradients": weights, "Adam": moments, "activations": activations}
    training = sum(parts.values())
    return {**parts, "training": training, "inference": inference}
