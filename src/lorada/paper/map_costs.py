"""Tables 2 and 3: what a map costs in one layer, by the paper's formulas and as it is run here.

Table 2: a map adds h·min(n,N)² numbers to the attention map, and needs no multiplications. The
paper's ``t_a``/``t_m`` weighting is left out of both sides. Table 3, for 16-bit numbers (Adam's in
32 bits):

    training:  weights 4hnr + gradients 4hnr + Adam 16hnr + activations 2hnn = 2hn(12r + n) bytes
    inference: the finished map, 2hnn bytes

A full-rank map (FMAM) has one weight of n·n where LMAM has two of n·r.
"""

from typing import Any

from lorada.support.models import MODELS, named_config

LENGTH, TOKENS, RANK = 128, 512, 2  # n and N of section 3.3, and r
MIB = 2**20
Bytes = dict[str, int]

PRINTED = {  # MB: training, inference
    ("llama-7b", "LMAM"): ("1.19", "1"),
    ("llama-7b", "FMAM"): ("6", "1"),
    ("llama2-70b", "LMAM"): ("2.38", "2"),
    ("llama2-70b", "FMAM"): ("12", "2"),
}
FORMULAS = {  # part → bytes of LMAM and of FMAM
    "weights": ("4hnr", "2hnn"),
    "gradients": ("4hnr", "2hnn"),
    "Adam": ("16hnr", "8hnn"),
    "activations": ("2hnn", "—"),
    "training": ("2hn(12r+n)", "12hnn"),
    "inference": ("2hnn", "2hnn"),
}


def cost_table(number: int) -> dict[str, Any]:
    """Table 2 (operations) or 3 (memory): ``title``, ``columns``, ``rows`` and ``notes``."""
    return {2: _operations, 3: _memory}[number]()


def _operations() -> dict[str, Any]:
    config = named_config("llama-7b")
    heads, width = config.num_attention_heads, config.hidden_size
    own = LENGTH**2 * width
    rows: list[list[Any]] = [
        ["LoRA, merged: extra multiplications", "0", "0", 0],
        ["LoRA, merged: extra additions", "0", "0", 0],
        ["LMAM, map added to Attn: extra multiplications", "0", "0", 0],
        ["LMAM, map added to Attn: extra additions", "h·min(n,N)²", "h·min(n,N)²",
         heads * LENGTH**2],
        ["LMAM, as run here (own term on V): extra multiplications", "min(n,N)²·d", "—", own],
    ]  # fmt: skip
    for tokens in (TOKENS, LENGTH):
        share = heads * LENGTH**2 / sum(computed_parts(config, tokens).values())
        what = f"share of the additions in the model with its head, N = {tokens}"
        rows.append([what, "L(4Nd²+2N²d+3Ndf)+NdV", "1.97e-5", f"{share:.3g}"])
    whole = computed_parts(config, TOKENS)["layer"]
    return {
        "title": "Table 2: extra operations of LoRA and LMAM in one layer of LLaMA-7B at inference "
        f"(N = {TOKENS}, n = {LENGTH}, h = {heads}, d = {width})",
        "columns": ["what", "formula", "printed", "computed"],
        "rows": rows,
        "notes": [
            f"With the printed N = {TOKENS} no count that we tried gives 1.97e-5; on a text of n "
            "tokens the share of the model with its head rounds to the printed number.",
            "Added to the attention map, LMAM needs no multiplications. Here its product with V is "
            "a separate term, so that fused kernels, which never form the attention map, can be "
            f"used; it costs {own / whole:.2%} of the layer's multiplications.",
        ],
    }


def computed_parts(config: Any, tokens: int) -> dict[str, float]:
    """Multiplications of one layer, and of its share of the model's head."""
    width, wide = config.hidden_size, config.intermediate_size
    return {
        "layer": 4 * tokens * width**2 + 2 * tokens**2 * width + 3 * tokens * width * wide,
        "head": tokens * width * config.vocab_size / config.num_hidden_layers,
    }


def _memory() -> dict[str, Any]:
    rows: list[list[Any]] = []
    for (name, method), printed in PRINTED.items():
        heads, full = named_config(name).num_attention_heads, method == "FMAM"
        columns = [formula_bytes(heads, full=full), bytes_here(heads, full=full)]
        shown = {"training": printed[0], "inference": printed[1]}
        for part, formulas in FORMULAS.items():
            values = [round(column[part] / MIB, 4) for column in columns]
            title = MODELS[name].title
            rows.append([title, method, part, formulas[full], shown.get(part, ""), *values])
    return {
        "title": f"Table 3: extra memory of a map in one layer (n = {LENGTH}, r = {RANK})",
        "columns": [
            "model", "method", "part", "bytes", "printed MB", "formula MiB",
            "as run here MiB",
        ],
        "rows": rows,
        "notes": [
            "The paper's form is Attn + Attn_s with 16-bit numbers. Its activations are 2hnn only "
            f"for N = n: autograd keeps Attn for the softmax and the sum for V, which is 2hNN more "
            f"({2 * 32 * TOKENS**2 // MIB} MiB for LLaMA-7B at N = {TOKENS}), not 2hnn.",
            "Here factors, their gradients and the map are 32-bit numbers, twice the paper's. The "
            "map is computed again for the backward pass, so autograd keeps only the factors and "
            "the values, which attention keeps anyway.",
            "Inference here keeps the factors as well as the finished map, which bake() makes.",
        ],
    }  # fmt: skip


def formula_bytes(heads: int, *, full: bool) -> Bytes:
    """Table 3's formulas; FMAM's 12hnn has no activations, because its map is its weight."""
    finished = 2 * heads * LENGTH**2
    weights = finished if full else 4 * heads * LENGTH * RANK
    return _parts(weights, 4 * weights, 0 if full else finished, finished)


def bytes_here(heads: int, *, full: bool) -> Bytes:
    """The same as ``lorada train`` runs a map: in 32 bits, and autograd keeps nothing for it."""
    numbers = heads * LENGTH * (LENGTH if full else 2 * RANK)
    return _parts(4 * numbers, 8 * numbers, 0, 4 * heads * LENGTH**2 + 4 * numbers)


def _parts(weights: int, moments: int, activations: int, inference: int) -> Bytes:
    parts = {
        "weights": weights, "gradients": weights, "Adam": moments, "activations": activations
    }  # fmt: skip
    return {**parts, "training": sum(parts.values()), "inference": inference}
