"""The setting of each part that is its size, and the usual learning rate of each method."""

from typing import Literal

# Part → the setting that is its size, then settings that keep their ratio to it. A tuner of PEFT
# has its lower-case name. A part without an entry has no size: gains are as many as the heads,
# QuanTA's gates follow from the width of the matrices, and TinyLoRA's u from r² on adds no further
# changes.
SIZES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("lmam", "bottleneck", "pa_attn", "parallel_ffn", "lamda"), ("rank",)),
    **dict.fromkeys(("sora", "omoe"), ("rank", "alpha")),
    **dict.fromkeys(
        ("shira", "delora", "glora", "hira", "hra", "lily", "miss", "peanut", "pvera", "vblora",
         "vera"), ("r",),
    ),
    **dict.fromkeys(("deft", "gralora", "loha", "lokr"), ("r", "alpha")),
    **dict.fromkeys(("fourierft", "waveft"), ("n_frequency",)),
    "prefix": ("length",),
    "lora": ("r", "lora_alpha"),
    "adalora": ("init_r", "target_r", "lora_alpha"),
    "adamss": ("num_subspaces",),
    "boft": ("boft_block_size",),
    "c3a": ("block_size",),
    "oft": ("oft_block_size",),
    "psoft": ("r", "psoft_alpha"),
    "randlora": ("r", "randlora_alpha"),
    "unilora": ("theta_d_length",),
}  # fmt: skip

# Parts of which a LARGER setting trains FEWER parameters.
FEWER_WHEN_LARGER = ("c3a", "randlora")

# Part → what its size may be; a part without an entry takes any number. ``divides_heads`` is for
# maps without a rank: a divisor of the number of attention heads.
Bound = Literal[
    "side", "largest_side", "entries", "sparse", "low_rank", "tokens", "context", "length",
    "divides_heads", "divides_inputs", "divides_outputs", "divides",
]  # fmt: skip
BOUNDS: dict[str, Bound] = {
    # At most the smaller side of each matrix of the part, as that is the highest rank it has.
    **dict.fromkeys(
        ("sora", "lamda", "omoe", "lora", "adalora", "adamss", "deft", "delora", "glora",
         "gralora", "hira", "hra", "lily", "loha", "lokr", "miss", "psoft"), "side",
    ),
    # The same of its largest matrix, for factors that all matrices share.
    **dict.fromkeys(("pvera", "vera"), "largest_side"),
    # At most the entries of each matrix.
    **dict.fromkeys(("fourierft", "waveft"), "entries"),
    "shira": "sparse",  # r·(in + out) is at most the entries of each matrix
    # A divisor above 1 of the input widths of all its matrices; a divisor of all their widths.
    **dict.fromkeys(("boft", "oft"), "divides_inputs"),
    **dict.fromkeys(("c3a", "randlora"), "divides"),
    # At most the entries of factors of rank r, which the part chooses from its numbers.
    "unilora": "low_rank",
    "prefix": "context",  # at most the model's tokens, less one
    "lmam": "length",  # at most the setting ``length`` of the part, and those tokens
}  # fmt: skip

# Settings whose defaults have to fit a model, since a part refuses or ignores others.
FITTED: dict[str, dict[str, Bound]] = {
    "lmam": {"heads": "divides_heads", "length": "tokens"},
    "gralora": {"gralora_k": "divides"},
    "road": {"group_size": "divides_outputs"},
    "vblora": {"vector_length": "divides"},
    **{
        part: {SIZES[part][0]: BOUNDS[part]}
        for part in ("prefix", "shira", "lamda", "boft", "c3a", "fourierft", "miss", "oft",
                     "psoft", "waveft")
    },
}  # fmt: skip

# The learning rate of a method without an entry below: what `lorada train` takes by default.
DEFAULT_RATE = 1e-3
# Methods of a map alone, which trains at its own ``map_learning_rate`` beside another method.
MAPS = ("lmam", "lmam_distance")
# Where a search for a learning rate looks, the same for all methods.
RATE_RANGE = (1e-5, 1e-1)

_HE = "scripts of He et al. (Tables 5 and 10)"
_LLM_ADAPTERS = "LLM-Adapters' scripts (Table 4)"
_LORADA = "Tables 16, 17 and 19"
_SUITE = "PEFT's method comparison on MetaMathQA"
_EXAMPLE = "PEFT's example of it"
_DOCS = "PEFT's documentation"

# Method → its usual learning rate, and where that comes from.
RATES: dict[str, tuple[float, str]] = {
    "lmam": (5e-3, "the default of map_learning_rate (docs/paper.md)"),
    "fmam": (5e-3, "the default of map_learning_rate (docs/paper.md)"),
    "lmam_distance": (5e-3, "the default of map_learning_rate (docs/paper.md)"),
    "lora": (3e-4, _LLM_ADAPTERS),
    "dora": (2e-4, "DoRA's scripts (Table 4)"),
    "adapter_ffn": (1e-4, _HE),
    "series": (3e-4, _LLM_ADAPTERS),
    "parallel": (3e-4, _LLM_ADAPTERS),
    "houlsby": (1e-4, _HE),
    "pfeiffer": (5e-5, _HE),
    "pa_attn_ffn": (5e-5, _HE),
    "prefix": (3e-2, _LLM_ADAPTERS),
    "mam": (1e-4, _HE),
    "prefix_lora": (5e-5, _HE),
    "autopeft": (1e-4, "AutoPEFT's paper"),
    "quanta": (5e-5, "QuanTA's scripts (Table 4)"),
    "ist": (2e-4, "IST's scripts (Table 4)"),
    "owlore": (3e-4, "OwLore's scripts (Table 4)"),
    "owlore_full": (3e-4, "OwLore's scripts (Table 4)"),
    "adalora": (8e-4, "AdaLoRA's scripts, for CoLA (Table 11)"),
    "sora": (8e-4, "SoRA's script (Table 11)"),
    "shira": (5e-4, "SHiRA's paper"),
    "lamda": (3e-4, "the rate of the other rows of Table 4"),
    "omoe": (2e-4, "OMoE's authors (Table 4)"),
    "longlora": (2e-5, "LongLoRA's scripts (Table 7)"),
    "lorada_a": (3e-4, _LORADA),
    "lorada_la": (1e-4, _LORADA),
    "lorada_q": (1e-4, _LORADA),
    "gain": (5e-3, "our choice: that of maps"),
    "gain_query": (5e-3, "our choice: that of maps"),
    "bitfit": (2e-4, "ten times that of full fine-tuning (Table 5)"),
    "full": (2e-5, _HE),
    "beft": (8e-3, _EXAMPLE),
    "adamss": (1e-4, _SUITE),
    "boft": (1e-4, _SUITE),
    "c3a": (1e-1, _DOCS),
    "deft": (3e-4, _EXAMPLE),
    "delora": (1e-3, _SUITE),
    "fourierft": (6e-2, _EXAMPLE),
    "frod": (1e-3, _SUITE),
    "glora": (3e-4, _EXAMPLE),
    "gralora": (2e-4, _SUITE),
    "hira": (4.5e-3, _SUITE),
    "hra": (5e-3, _EXAMPLE),
    "ia3": (5e-3, _SUITE),
    "lily": (1e-4, _EXAMPLE),
    "ln_tuning": (1e-4, _SUITE),
    "loha": (1e-4, _SUITE),
    "lokr": (3e-3, _SUITE),
    "miss": (1e-4, _SUITE),
    "oft": (1e-4, _SUITE),
    "peanut": (1e-4, _SUITE),
    "psoft": (5e-4, _EXAMPLE),
    "pvera": (3e-3, _SUITE),
    "randlora": (3e-4, _EXAMPLE),
    "road": (1e-3, _DOCS),
    "supertuning": (1e-4, _EXAMPLE),
    "tinylora": (1e-3, _SUITE),
    "unilora": (1e-4, _EXAMPLE),
    "vblora": (1e-3, _DOCS),
    "vera": (2e-2, _EXAMPLE),
    "waveft": (3e-4, _EXAMPLE),
}


def default_rate(name: str) -> float:
    """A method's own learning rate; of a sum, the smallest of its methods, which suits them all.

    A map that is added to another method does not count: it has its own ``map_learning_rate``.
    """
    if name in RATES:
        return RATES[name][0]
    methods = [each for each in name.split("+") if each not in MAPS]
    return min((RATES.get(each, (DEFAULT_RATE, ""))[0] for each in methods), default=DEFAULT_RATE)
