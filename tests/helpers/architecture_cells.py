"""What is tried on every architecture: ``COLUMNS``, and ``REASONS`` where there is nothing to try.

``test_architectures.py`` runs the cells; docs/tested.md is made of them too.
"""

from collections.abc import Callable

import torch
from architectures import ARCHITECTURES, ENCODER_DECODERS, inputs, logits
from conftest import WINDOW, assert_close
from exact_cells import written_out
from in_double import in_double
from peft import PeftModel, get_peft_model
from torch import Tensor

from lorada import LmamConfig
from lorada.attention.call import AttentionCall
from lorada.attention.observation import Observation, observe
from lorada.functional.maps import mask_map
from lorada.tuners.lmam import LmamLayer

LENGTH = 5  # n, shorter than the samples
NEW = 4  # tokens to generate
DEBERTAS = ("deberta", "deberta_v2")
ENCODERS = ("bert", "roberta", "xlm_roberta", "distilbert", "modernbert", *DEBERTAS, "vit")
# How far back a windowed layer sees; ModernBERT's two tokens to either side and itself make 3.
WINDOWS = {"mistral": WINDOW, "gemma2": WINDOW, "gemma3": WINDOW, "modernbert": 3}


def adapted(name: str, config: object = None, **changes) -> PeftModel:
    """A tiny model with a random map, the same for the same arguments."""
    base = ARCHITECTURES[name](**changes)
    torch.manual_seed(1)
    config = config or LmamConfig(length=LENGTH, inverse_scale=2.0, init_weights=False)
    return get_peft_model(base, config).eval()


def batch_of(name: str) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return inputs(name)


def samples_of(name: str) -> list[dict[str, Tensor]]:
    """The batch as single samples without padding."""
    samples = []
    batch = batch_of(name)
    for i in range(3):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        if "attention_mask" in one:
            one["input_ids"] = one["input_ids"][:, one.pop("attention_mask")[0].bool()]
        samples.append(one)
    return samples


def own_rows(name: str, logits: Tensor) -> list[Tensor]:
    """The logits of each sample's tokens in ``batch_of``."""
    if name in (*ENCODER_DECODERS, "vit"):
        return list(logits)
    masks = batch_of(name)["attention_mask"].bool()
    return [row[mask] for row, mask in zip(logits, masks, strict=True)]


def check_map(name: str) -> None:
    """Each layer adds the map of Eqs. 6-15 times its values: full, or the lower triangle."""
    model = adapted(name)
    names = {module: key for key, module in model.named_modules()}
    for sample in samples_of(name):
        seen: list[Observation] = []
        with observe(seen.append), torch.no_grad():
            with_map = model(**sample).logits
        assert {one.call.module for one in seen} == {
            layer.host for layer in model.modules() if isinstance(layer, LmamLayer)
        }
        for one in seen:
            stack = names[one.call.module]
            causal = "decoder" in stack if name in ENCODER_DECODERS else name not in ENCODERS
            expected = literal_term(one.call, causal, WINDOWS.get(name))
            assert_close(one.term.transpose(1, 2), expected)
        with model.disable_adapter(), torch.no_grad():
            assert torch.equal(model(**sample).logits, ARCHITECTURES[name]()(**sample).logits)
            changed = (with_map - model(**sample).logits).abs().amax(-1)
        reached = changed[..., :LENGTH] if changed.dim() > 1 else changed
        assert (reached > 0.01).all()


def literal_term(call: AttentionCall, causal: bool, window: int | None) -> Tensor:
    assert call.shape.window in (None, window)
    low_rank = mask_map(written_out(call.module.lmam), causal, call.shape.window)
    size = call.shape.keys
    full = torch.zeros(len(low_rank), size, size)
    reach = min(size, LENGTH)
    full[:, :reach, :reach] = low_rank[:, :reach, :reach]
    return full @ call.value.repeat_interleave(len(low_rank) // call.value.shape[1], 1)


def check_padding(name: str) -> None:
    model = adapted(name)
    together = own_rows(name, logits(model, **batch_of(name)))
    for row, sample in zip(together, samples_of(name), strict=True):
        assert_close(row, logits(model, **sample)[0])


def check_sdpa(name: str) -> None:
    batch = batch_of(name)
    eager, other = (
        own_rows(name, logits(adapted(name, attn_implementation=form), **batch))
        for form in ("eager", "sdpa")
    )
    for row, expected in zip(other, eager, strict=True):
        assert_close(row, expected)


def check_flex(name: str) -> None:
    """On processors it has no fp64, so it is to be as near to that as eager attention in fp32."""
    torch._dynamo.reset()  # flex attention compiles itself, a few times at most
    batch = batch_of(name)
    eager, flex = (adapted(name, attn_implementation=form) for form in ("eager", "flex_attention"))
    found = [own_rows(name, logits(model, **batch)) for model in (eager, flex)]
    with in_double():
        batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        exact = own_rows(name, logits(eager.double(), **batch))
    usual, error = (
        max((row - right).abs().max() for row, right in zip(rows, exact, strict=True))
        for rows in found
    )
    assert error < 10 * usual


def check_cache(cache: str) -> Callable[[str], None]:
    """A batch that is generated with a cache gets the logits of each sample without one."""

    def check(name: str) -> None:
        model, batch = adapted(name), batch_of(name)
        batch.pop("decoder_input_ids", None)
        if name not in ENCODER_DECODERS:  # decoders are padded on the left
            for key in batch:
                batch[key][1] = batch[key][1].roll(3)
        options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
        options |= {"output_logits": True, "return_dict_in_generate": True, "eos_token_id": None}
        together = model.generate(**batch, cache_implementation=cache, **options)
        found = torch.stack(together.logits, 1)
        for i, sample in enumerate(samples_of(name)):
            sample.pop("decoder_input_ids", None)
            single = torch.stack(model.generate(**sample, use_cache=False, **options).logits, 1)
            # Whisper ends a sample where it pleases.
            assert single.shape[1] > 1
            assert_close(found[i, : single.shape[1]], single[0])

    return check


def check_compile(name: str) -> None:
    """One graph, and the same numbers; what the compiler then makes of it is not ours."""
    torch._dynamo.reset()
    model, batch = adapted(name), batch_of(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = own_rows(name, logits(model, **batch))
    for row, plain in zip(own_rows(name, logits(compiled, **batch)), expected, strict=True):
        assert_close(row, plain)


COLUMNS: dict[str, Callable[[str], None]] = {
    "map": check_map,
    "padding": check_padding,
    "sdpa = eager": check_sdpa,
    "flex = eager": check_flex,
    "dynamic cache": check_cache("dynamic"),
    "static cache": check_cache("static"),
    "compile": check_compile,
}
SLOW = ("flex = eager", "static cache", "compile")
# Cells of these that run every time; DeBERTa has hooks of its own.
QUICK = (("llama", "static cache"), ("llama", "compile"), ("deberta", "compile"))

EAGER_ONLY = "eager only in transformers"
NO_FLEX = "no flex in transformers"
NO_CACHE = "encoder"
REASONS: dict[tuple[str, str], str] = {
    **{(name, "sdpa = eager"): EAGER_ONLY for name in ("gemma2", *DEBERTAS)},
    **{(name, "flex = eager"): NO_FLEX for name in ("gpt2", *DEBERTAS)},
    ("t5", "flex = eager"): "not in the base either",
    **{(name, f"{cache} cache"): NO_CACHE for name in ENCODERS for cache in ("dynamic", "static")},
    ("vit", "padding"): "images have none",
    ("whisper", "padding"): "spectrograms have one length",
}


def is_slow(name: str, column: str) -> bool:
    """Whether only ``make test-all`` runs a cell."""
    return column in SLOW and (name, column) not in QUICK
