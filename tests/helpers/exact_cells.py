"""The forms in which a batch may come, and the variants of a map that each of them is tried with.

``test_exact.py`` runs every cell of ``MATRIX``; the matrix in docs/tested.md is made of it too.
"""

import functools
from collections.abc import Callable

import torch
from architectures import logits as forward
from conftest import TINY, assert_close
from covering_cases import covering
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, StaticCache

from lorada import LmamConfig, LoradaConfig, PrefixConfig
from lorada.tuners.lmam import LmamLayer

LENGTH = 6  # n; longer than Mistral's window of 4, shorter than the long samples
NEW = 6  # tokens that every prompt is continued by
PAD = 1
PROMPTS = [torch.arange(10, 10 + size) * 7 % 83 + 5 for size in (3, 9, 6, 12)]
DECODERS = ("llama", "mistral", "qwen3")
VARIANTS = {
    "map": {},
    "end": {"align": "end"},
    "no_negative": {"ablation": "no_negative"},
    "softmax": {"ablation": "softmax"},
    "full_rank": {"ablation": "full_rank"},
    "no_position": {"ablation": "no_position"},
    "half_the_heads": {"heads": 2},
    "behind_a_prefix": {"prefix": 3},
    "no_negative_behind_a_prefix": {"ablation": "no_negative", "prefix": 3},
}
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD}
GREEDY |= {"eos_token_id": None, "bos_token_id": None}


def adapted(name: str, variant: str, base: dict | None = None, **options) -> PeftModel:
    """A tiny model with a random map; the same weights and map for the same arguments.

    ``base`` changes the config of the model, ``options`` that of the map.
    """
    defaults = {"rank": 2, "length": LENGTH, "inverse_scale": 2.0, "init_weights": False}
    options = {**defaults, **VARIANTS[variant], **options}
    prefix = options.pop("prefix", None)
    config = LmamConfig(**options)
    if prefix is not None:
        before = PrefixConfig(length=prefix, init_weights=False)
        config = LoradaConfig(parts=[before, config])
    return get_peft_model(TINY[name](**(base or {})), config).eval()


def alone(model: PeftModel, sample: Tensor) -> Tensor:
    options = {} if model.config.model_type in ("bert", "roberta") else {"use_cache": False}
    return forward(model, input_ids=sample[None], **options)[0]


def written_out(layer: LmamLayer) -> Tensor:
    """The map of a layer, from its equations."""
    w_a, w_b = layer.lora_w_a["default"].detach(), layer.lora_w_b["default"].detach()
    length = w_a.shape[1]
    pe = 10000.0 ** (-2.0 * torch.arange(length) / length)
    return (w_a + pe[:, None]) @ (w_b + pe) / layer.configs["default"].inverse_scale


@functools.cache
def plain_run(name: str, variant: str) -> tuple[list[Tensor], list[Tensor]]:
    """Each prompt with its greedy continuation, and the logits of all its tokens."""
    model, samples = adapted(name, variant), []
    for sample in PROMPTS:
        for _ in range(NEW if name in DECODERS else 0):
            sample = torch.cat([sample, alone(model, sample)[-1:].argmax(-1)])
        samples.append(sample)
    return samples, [alone(model, sample) for sample in samples]


def assert_as_plain(
    cell: str, samples: list[Tensor], found: list[Tensor], expected: list[Tensor]
) -> None:
    """What a cell found for samples is what the plain run has."""
    for sample, logits, plain in zip(samples, found, expected, strict=True):
        if logits.dim() == 1:  # log-probabilities of the generated tokens
            new = plain[-NEW - 1 : -1].log_softmax(-1).gather(1, sample[-NEW:, None])[:, 0]
            # Computed in fp64 and handed out in fp32.
            assert_close(logits, new, terms=1, size=new.abs(), dtype=torch.float32)
        elif cell.startswith("generate"):
            assert_close(logits, plain[-NEW - 1 : -1])
        else:
            assert_close(logits, plain[-len(logits) :])


def pad(samples: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Padded ids, and their mask."""
    width = max(len(sample) for sample in samples)
    ids = torch.full((len(samples), width), PAD)
    mask = torch.zeros_like(ids)
    for row, real, sample in zip(ids, mask, samples, strict=True):
        place = slice(width - len(sample), None) if side == "left" else slice(len(sample))
        row[place], real[place] = sample, 1
    return ids, mask


def counted(mask: Tensor) -> Tensor:
    """Position ids that count real tokens, as ``generate`` makes them."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def own_rows(logits: Tensor, mask: Tensor) -> list[Tensor]:
    return [row[real.bool()] for row, real in zip(logits, mask, strict=True)]


# Cells: (model, samples) -> the logits of each sample's tokens, the last ones or all.


def padded(side: str, positions: bool) -> Callable:
    def cell(model, samples):
        ids, mask = pad(samples, side)
        # BERT's own positions are absolute, so the base itself must be told of pads.
        told = positions or model.config.model_type == "bert"
        extra = {"position_ids": counted(mask)} if told else {}
        return own_rows(forward(model, input_ids=ids, attention_mask=mask, **extra), mask)

    return cell


def one_by_one(cell: Callable) -> Callable:
    """A cell on each sample by itself, which has no pad, hence on most calls no mask at all."""
    return lambda model, samples: [cell(model, [sample])[0] for sample in samples]


def stepped(cache: str, sizes: list[int], positions: int | None = 0) -> Callable:
    """Chunks of these sizes, then single tokens, into a cache.

    ``positions`` is what the position of the first token is; None leaves them to the model, which
    then counts slots.
    """

    def cell(model, samples):
        ids, mask = pad(samples, "left")
        store = DynamicCache(config=model.config)
        if cache == "static":
            store = StaticCache(config=model.config, max_cache_len=ids.shape[1] + 3)
        logits, at, left = [], 0, [*sizes, *[1] * ids.shape[1]]
        while at < ids.shape[1]:
            step = slice(at, at + left.pop(0))
            given = {"input_ids": ids[:, step]}
            if positions is not None:
                given["position_ids"] = counted(mask)[:, step] + positions
            logits.append(forward(model, **given, attention_mask=mask[:, : step.stop],
                                  past_key_values=store, use_cache=True))  # fmt: skip
            at = step.stop
        return own_rows(torch.cat(logits, 1), mask)

    return cell


def decoded_behind_right_pads(model, samples):
    """The prompts padded on the right, then decoded as they stand: pads between real tokens."""
    prompts = [sample[:-NEW] for sample in samples]
    ids, mask = pad(prompts, "right")
    store = DynamicCache(config=model.config)
    forward(model, input_ids=ids, attention_mask=mask, past_key_values=store, use_cache=True)
    logits = []
    for i in range(NEW):
        mask = torch.cat([mask, torch.ones(len(samples), 1, dtype=torch.long)], 1)
        token = torch.stack([sample[len(sample) - NEW + i] for sample in samples])[:, None]
        logits.append(forward(model, input_ids=token, attention_mask=mask,
                              position_ids=counted(mask)[:, -1:],
                              past_key_values=store, use_cache=True))  # fmt: skip
    return list(torch.cat(logits, 1))


def generated(**options) -> Callable:
    def cell(model, samples):
        ids, mask = pad([sample[:-NEW] for sample in samples], "left")
        out = model.generate(input_ids=ids, attention_mask=mask, output_logits=True,
                             return_dict_in_generate=True, **GREEDY, **options)  # fmt: skip
        for row, sample in zip(out.sequences, samples, strict=True):
            assert row[-NEW:].tolist() == sample[-NEW:].tolist()
        # What is generated last is never read again.
        return list(torch.stack(out.logits, 1))

    return cell


def assisted(model, samples):
    """A draft model proposes several tokens, which are then read at once."""
    return one_by_one(generated(assistant_model=TINY["llama"]()))(model, samples)


def packed(by_lengths: bool) -> Callable:
    """All samples one behind the other in a single row."""

    def cell(model, samples):
        sizes = [len(sample) for sample in samples]
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        positions = torch.cat([torch.arange(size) for size in sizes])[None]
        given = {"input_ids": torch.cat(samples)[None], "position_ids": positions}
        if model.config.model_type == "bert":  # whoever packs for an encoder brings the mask
            given["attention_mask"] = (owner[:, None] == owner)[None, None]
        else:
            given["use_cache"] = False
        if by_lengths:
            lengths = torch.tensor([0, *sizes]).cumsum(0).int()
            given |= {"cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths}
            given |= {"max_length_q": max(sizes), "max_length_k": max(sizes)}
        return list(forward(model, **given)[0].split(sizes))

    return cell


def batched_continuously(model, samples):
    """Sequences join and leave one row; what comes back are tokens and their log-probabilities."""
    prompts = [sample[:-NEW].tolist() for sample in samples]
    options = {k: v for k, v in GREEDY.items() if k != "bos_token_id"} | {"eos_token_id": -1}
    out = model.generate_batch(
        prompts, generation_config=GenerationConfig(**options),
        # Fewer tokens a batch than the prompts have, so that they join at different times.
        continuous_batching_config=ContinuousBatchingConfig(
            return_logprobs=True, max_batch_tokens=10, num_blocks=16, block_size=4,
            auto_switch_to_flash=False),
    )  # fmt: skip
    found, in_order = [], sorted(out, key=lambda key: int(key.rsplit("_", 1)[-1]))
    for sample, result in zip(samples, [out[key] for key in in_order], strict=True):
        assert result.generated_tokens == sample[-NEW:].tolist()
        found.append(torch.tensor(result.logprobs))
    return found


def masked_with(blocked: float) -> Callable:
    """A mask of the caller's own, that takes so much off the scores of what is not to be seen."""

    def cell(model, samples):
        ids, mask = pad(samples, "left")
        see = mask.bool()[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
        if model.config.model_type != "bert":
            window = getattr(model.config, "sliding_window", None) or ids.shape[1]
            see = see & torch.ones(ids.shape[1], ids.shape[1]).tril().triu(1 - window).bool()
        own = torch.where(see, 0.0, blocked)
        options = {} if model.config.model_type == "bert" else {"use_cache": False}
        logits = forward(model, input_ids=ids, attention_mask=own, position_ids=counted(mask),
                         **options)  # fmt: skip
        return own_rows(logits, mask)

    return cell


ENCODER_CELLS = {
    "padded on the left": padded("left", positions=False),
    "padded on the right": padded("right", positions=False),
    "padded on the left, positions given": padded("left", positions=True),
    "a mask of -10⁴": masked_with(-1e4),
    "a mask of -∞": masked_with(float("-inf")),
    "packed by position_ids": packed(by_lengths=False),
    "packed by cu_seq_lens": packed(by_lengths=True),
}
# Each step of these sees another end of the sequence, so they are not for a map that lies there.
CACHE_CELLS = {
    "dynamic cache": stepped("dynamic", []),
    "dynamic cache, one by one": one_by_one(stepped("dynamic", [])),
    "static cache": stepped("static", []),
    "static cache, one by one": one_by_one(stepped("static", [])),
    "prefill, then steps": stepped("dynamic", [7]),
    "prefill, then steps, static": stepped("static", [7]),
    "chunks": stepped("dynamic", [2, 5, 1, 4]),
    "chunks, one by one": one_by_one(stepped("dynamic", [2, 5, 1, 4])),
    "chunks, static": stepped("static", [2, 5, 1, 4]),
    "positions left to the model": stepped("dynamic", [7], positions=None),
    "positions left to the model, static": stepped("static", [7], positions=None),
    "positions from 5": stepped("dynamic", [7], positions=5),
    "positions from 5, static": stepped("static", [7], positions=5),
    "positions from 5, one by one": one_by_one(stepped("static", [7], positions=5)),
    "decoded behind pads on the right": decoded_behind_right_pads,
    "generate": generated(),
    "generate, static": generated(cache_implementation="static"),
    "generate, chunked prefill": generated(prefill_chunk_size=4),
    "generate, assisted": assisted,
    "continuous batching": batched_continuously,
}
CELLS = {**ENCODER_CELLS, **CACHE_CELLS}
# The window of the base counts slots, pads included, so there is no exact run to equal.
NOT_EXACT_IN_THE_BASE = {("mistral", "decoded behind pads on the right")}
# A prefix is not rotated, so how far a token is from it depends on the position it is given.
ABSOLUTE = [variant for variant, options in VARIANTS.items() if "prefix" in options]
MOVED = ["padded on the left", *(cell for cell in CELLS if cell.startswith("positions "))]
MATRIX = [
    (name, cell, variant)
    for name in (*DECODERS, "bert")
    for cell in CELLS
    for variant in VARIANTS
    if cell in ENCODER_CELLS or (name in DECODERS and variant != "end")
    if (name, cell) not in NOT_EXACT_IN_THE_BASE
    if not (name in DECODERS and cell in MOVED and variant in ABSOLUTE)
]
COVERED = covering(MATRIX, 2)
