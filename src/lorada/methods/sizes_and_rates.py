"""The setting of each part that is its size, and the usual learning rate of each method."""

from typing import Literal

from lorada.methods.peft_method import load_peft_method, method_of_part
from lorada.methods.rate_range import DEFAULT_RATE, RATE_RANGE
from lorada.support.outside_packages import is_outside

__all__ = ["RATE_RANGE"]

# Part → the setting that is its size, then settings that keep their ratio to it. A tuner of PEFT
# has its lower-case name. A part with an empty entry has no size and stays as it is under a budget:
# QuanTA's gates follow from the width of the matrices, and TinyLoRA's u from r² on adds no changes.
SIZES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("quanta", "beft", "frod", "ia3", "ln_tuning", "osf", "road", "supertuning", "tinylora"),
        (),
    ),
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

# Part with a size → what that may be; None for any number. ``divides_heads`` is for
# maps without a rank: a divisor of the number of attention heads.
Bound = Literal[
    "side", "largest_side", "entries", "sparse", "low_rank", "tokens", "context", "length",
    "divides_heads", "divides_inputs", "divides_outputs", "divides",
]  # fmt: skip
BOUNDS: dict[str, Bound | None] = {
    **dict.fromkeys(("bottleneck", "pa_attn", "parallel_ffn", "peanut", "vblora")),
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
    "prefix": "context",  # less than the model's tokens, so that a text has room
    "lmam": "length",  # at most the setting ``length`` of the part, and those tokens
}  # fmt: skip

# Settings whose defaults have to fit a model, since a part refuses or ignores others.
FITTED: dict[str, dict[str, Bound]] = {
    "lmam": {"heads": "divides_heads", "length": "tokens"},
    "gralora": {"gralora_k": "divides"},
    "road": {"group_size": "divides_outputs"},
    "vblora": {"vector_length": "divides"},
    **{
        part: {SIZES[part][0]: bound}
        for part, bound in BOUNDS.items()
        if bound is not None
        and part in ("prefix", "shira", "lamda", "boft", "c3a", "fourierft", "miss", "oft",
                     "psoft", "waveft")
    },
}  # fmt: skip

# Method → its usual learning rate, under where it comes from.
RATES: dict[str, float] = {
    # That of the head; maps have 0.4 times as much (docs/studies/map.md)
    "lmam": 1.2e-2, "fmam": 1.2e-2,
    # LLM-Adapters' scripts (Table 4)
    "lora": 3e-4, "series": 3e-4, "parallel": 3e-4, "prefix": 3e-2,
    # The scripts of other authors for Table 4, or the rate of its other rows
    "dora": 2e-4, "quanta": 5e-5, "ist": 2e-4, "owlore": 3e-4, "owlore_full": 3e-4,
    "lamda": 3e-4, "omoe": 2e-4,
    # Scripts of He et al. (Tables 5 and 10); of BitFit, ten times that of full fine-tuning
    "adapter_ffn": 1e-4, "houlsby": 1e-4, "pfeiffer": 5e-5, "pa_attn_ffn": 5e-5, "mam": 1e-4,
    "prefix_lora": 5e-5, "full": 2e-5, "bitfit": 2e-4,
    # Scripts of AdaLoRA (for CoLA) and SoRA (Table 11), and of LongLoRA (Table 7)
    "adalora": 8e-4, "sora": 8e-4, "longlora": 2e-5,
    # The papers of AutoPEFT and SHiRA
    "autopeft": 1e-4, "shira": 5e-4,
    # Tables 16, 17 and 19
    "lorada_a": 3e-4, "lorada_la": 1e-4, "lorada_q": 1e-4,
    # PEFT's method comparison on MetaMathQA
    "adamss": 1e-4, "boft": 1e-4, "delora": 1e-3, "frod": 1e-3, "gralora": 2e-4, "hira": 4.5e-3,
    "ia3": 5e-3, "ln_tuning": 1e-4, "loha": 1e-4, "lokr": 3e-3, "miss": 1e-4, "oft": 1e-4,
    "peanut": 1e-4, "pvera": 3e-3, "tinylora": 1e-3,
    # PEFT's example of it
    "beft": 8e-3, "deft": 3e-4, "fourierft": 6e-2, "glora": 3e-4, "hra": 5e-3, "lily": 1e-4,
    "psoft": 5e-4, "randlora": 3e-4, "supertuning": 1e-4, "unilora": 1e-4, "vera": 2e-2,
    "waveft": 3e-4,
    # PEFT's documentation
    "loraplus": 5e-5, "lorafa": 7e-5, "c3a": 1e-1, "road": 1e-3, "vblora": 1e-3,
}  # fmt: skip


def size_settings(part: str) -> tuple[str, ...]:
    """The setting that is the size of a part, then those that keep their ratio to it.

    Empty for a part without a size.
    """
    outside = method_of_part(part)
    return SIZES.get(part, ()) if outside is None else outside.size_settings


def default_rate(name: str) -> float:
    """A method's own learning rate; of a sum, the smallest of its methods, which suits them all.

    A map that is added to another method does not count: its rate is a multiple of the others'.
    """
    if name in RATES:
        return RATES[name]
    summands = [summand for summand in name.split("+") if summand != "lmam"]
    return min(map(_rate_of, summands), default=DEFAULT_RATE)


def _rate_of(name: str) -> float:
    """The learning rate of a method that is no sum."""
    if name not in RATES and is_outside(name):
        return load_peft_method(name).learning_rate
    return RATES.get(name, DEFAULT_RATE)
