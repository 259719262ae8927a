"""One matrix: whatever form a batch comes in, every sample gets the numbers it gets alone.

The reference of every cell is the plain run: one sample, no padding, no cache. Samples are
continued greedily, so that a cell that decodes has the same tokens to compare.
"""

import functools
import inspect
import os
from collections.abc import Callable

import pytest
import torch
from conftest import TINY, assert_close
from paths import ROOT
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    MistralForCausalLM,
    StaticCache,
)

from lorada import LmamConfig, LoradaConfig, PrefixConfig
from lorada.attention.observation import Observation, observe
from lorada.tuners.lmam import LmamLayer

pytestmark = pytest.mark.fp64

PAGE = ROOT / "docs" / "exact.md"
BEGIN, END = "<!-- written by tests/attention/test_exact.py -->\n", "<!-- until here -->"
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
    "softmax_with_future": {"ablation": "softmax_with_future"},
    "full_rank": {"ablation": "full_rank"},
    "no_position": {"ablation": "no_position"},
    "half_the_heads": {"heads": 2},
    "behind_a_prefix": {"prefix": 3},
    "no_negative_behind_a_prefix": {"ablation": "no_negative", "prefix": 3},
}
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD}
GREEDY |= {"eos_token_id": None, "bos_token_id": None}


def adapted(name: str, variant: str, **options) -> PeftModel:
    """A tiny model with a random map; the same weights and map for the same arguments."""
    defaults = {"rank": 2, "length": LENGTH, "inverse_scale": 2.0, "init_weights": False}
    options = {**defaults, **VARIANTS[variant], **options}
    prefix = options.pop("prefix", None)
    config = LmamConfig(**options)
    if prefix is not None:
        before = PrefixConfig(length=prefix, init_weights=False)
        config = LoradaConfig(parts=[before, config])
    return get_peft_model(TINY[name](), config).eval()


def forward(model: PeftModel, **inputs) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def alone(model: PeftModel, sample: Tensor) -> Tensor:
    options = {} if model.config.model_type == "bert" else {"use_cache": False}
    return forward(model, input_ids=sample[None], **options)[0]


@functools.cache
def plain_run(name: str, variant: str) -> tuple[list[Tensor], list[Tensor]]:
    """Each prompt with its greedy continuation, and the logits of all its tokens."""
    model, samples = adapted(name, variant), []
    for sample in PROMPTS:
        for _ in range(NEW if name in DECODERS else 0):
            sample = torch.cat([sample, alone(model, sample)[-1:].argmax(-1)])
        samples.append(sample)
    return samples, [alone(model, sample) for sample in samples]


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


def stepped(
    cache: str, sizes: list[int], together: bool = True, positions: int | None = 0
) -> Callable:
    """Chunks of these sizes, then single tokens, into a cache.

    ``positions`` is what the position of the first token is; None leaves them to the model, which
    then counts slots.
    """

    def steps(model, samples):
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

    def cell(model, samples):
        # One sample by itself has no pad, hence on most calls no mask at all.
        return steps(model, samples) if together else [steps(model, [s])[0] for s in samples]

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


def generated(together: bool = True, **options) -> Callable:
    def run(model, samples):
        ids, mask = pad([sample[:-NEW] for sample in samples], "left")
        out = model.generate(input_ids=ids, attention_mask=mask, output_logits=True,
                             return_dict_in_generate=True, **GREEDY, **options)  # fmt: skip
        for row, sample in zip(out.sequences, samples, strict=True):
            assert row[-NEW:].tolist() == sample[-NEW:].tolist()
        # What is generated last is never read again.
        return list(torch.stack(out.logits, 1))

    def cell(model, samples):
        return run(model, samples) if together else [run(model, [s])[0] for s in samples]

    return cell


def assisted(model, samples):
    """A draft model proposes several tokens, which are then read at once."""
    return generated(together=False, assistant_model=TINY["llama"]())(model, samples)


def packed(by_lengths: bool, pads: int = 0) -> Callable:
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
            return_logprobs=True, max_batch_tokens=10, num_blocks=16, block_size=4),
    )  # fmt: skip
    found = []
    for sample, result in zip(samples, sorted_by_request(out), strict=True):
        assert result.generated_tokens == sample[-NEW:].tolist()
        found.append(torch.tensor(result.logprobs))
    return found


def sorted_by_request(out: dict) -> list:
    return [out[key] for key in sorted(out, key=lambda key: int(key.rsplit("_", 1)[-1]))]


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
# Each step of these sees another end of the sequence, so they are not for what looks at that end.
TO_THE_END = ("end", "softmax_with_future")
CACHE_CELLS = {
    "dynamic cache": stepped("dynamic", []),
    "dynamic cache, one by one": stepped("dynamic", [], together=False),
    "static cache": stepped("static", []),
    "static cache, one by one": stepped("static", [], together=False),
    "prefill, then steps": stepped("dynamic", [7]),
    "prefill, then steps, static": stepped("static", [7]),
    "chunks": stepped("dynamic", [2, 5, 1, 4]),
    "chunks, one by one": stepped("dynamic", [2, 5, 1, 4], together=False),
    "chunks, static": stepped("static", [2, 5, 1, 4]),
    "positions left to the model": stepped("dynamic", [7], positions=None),
    "positions left to the model, static": stepped("static", [7], positions=None),
    "positions from 5": stepped("dynamic", [7], positions=5),
    "positions from 5, static": stepped("static", [7], positions=5),
    "positions from 5, one by one": stepped("static", [7], together=False, positions=5),
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
MOVED = ["padded on the left", *(cell for cell in CELLS if cell.startswith("positions "))]
MATRIX = [
    (name, cell, variant)
    for name in (*DECODERS, "bert")
    for cell in CELLS
    for variant in VARIANTS
    if cell in ENCODER_CELLS or (name in DECODERS and variant not in TO_THE_END)
    if (name, cell) not in NOT_EXACT_IN_THE_BASE
    if not (name in DECODERS and cell in MOVED and "prefix" in VARIANTS[variant])
]


@pytest.mark.parametrize(("name", "cell", "variant"), MATRIX, ids=lambda part: part)
def test_every_form_of_a_batch_gives_the_numbers_of_the_plain_run(name, cell, variant):
    samples, expected = plain_run(name, variant)
    found = CELLS[cell](adapted(name, variant), samples)
    for sample, logits, plain in zip(samples, found, expected, strict=True):
        if logits.dim() == 1:  # log-probabilities of the generated tokens
            new = plain[-NEW - 1 : -1].log_softmax(-1)
            new = new.gather(1, sample[-NEW:, None])[:, 0]
            # Computed in fp64 and handed out in fp32.
            assert_close(logits, new, terms=1, size=new.abs(), dtype=torch.float32)
        elif cell.startswith("generate"):
            assert_close(logits, plain[-NEW - 1 : -1])
        else:
            assert_close(logits, plain[-len(logits) :])


@pytest.mark.parametrize("cell", [cell for cell in CACHE_CELLS if cell.endswith("one by one")])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_without_pads_raw_positions_are_those_of_tokens_behind_any_cache(name, cell):
    samples, expected = plain_run(name, "map")
    found = CELLS[cell](adapted(name, "map", positions="raw"), samples)
    for logits, plain in zip(found, expected, strict=True):
        assert_close(logits, plain)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_tokens_are_counted_behind_a_window_by_either_name_of_the_cache(name):
    if name not in inspect.signature(MistralForCausalLM.forward).parameters:
        name = "past_key_values"  # an older transformers has no other
    model = adapted("mistral", "map")
    store = DynamicCache(config=model.config)
    steps, at = [], 5  # positions from 5 on are no count of tokens
    for ids in PROMPTS[3].split([4, 1, 1, 6]):
        positions = torch.arange(at, at := at + len(ids))[None]
        steps.append(forward(model, input_ids=ids[None], position_ids=positions,
                             use_cache=True, **{name: store}))  # fmt: skip
    assert_close(torch.cat(steps, 1)[0], alone(model, PROMPTS[3]))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize(
    "variant", ["map", "no_negative", "softmax", "full_rank", "behind_a_prefix"]
)
@pytest.mark.parametrize("name", DECODERS)
def test_beams_of_a_batch_are_those_of_each_sample_alone_without_a_cache(name, variant, cache):
    model = adapted(name, variant)
    ids, mask = pad(PROMPTS, "left")
    options = {**GREEDY, "num_beams": 3, "return_dict_in_generate": True, "output_scores": True}
    together = model.generate(
        input_ids=ids, attention_mask=mask, cache_implementation=cache, **options
    )
    for i, prompt in enumerate(PROMPTS):
        single = model.generate(input_ids=prompt[None], use_cache=False, **options)
        assert together.sequences[i, -NEW:].tolist() == single.sequences[0, -NEW:].tolist()
        assert_close(together.sequences_scores[i], single.sequences_scores[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_plain_run_is_not_that_of_the_base(variant):
    model = adapted("llama", variant)
    sample = PROMPTS[3]
    with_map = alone(model, sample)
    with model.disable_adapter():
        changed = (with_map - alone(model, sample)).abs().amax(-1)
    first = 1 if variant == "no_negative" else 0  # one key: softmax is 1
    reached = changed[-LENGTH:] if variant == "end" else changed[first:]
    assert (reached > 0.05).all()


def test_sequences_that_the_base_lets_see_each_other_are_refused():
    model = adapted("llama", "map")
    positions = torch.cat([torch.arange(3), torch.arange(9)])[None]
    with pytest.raises(ValueError, match="pass use_cache=False"):
        model(input_ids=torch.cat(PROMPTS[:2])[None], position_ids=positions, use_cache=True)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "bert"])
@pytest.mark.parametrize("where", ["first n of raw positions (Eqs. 14-15)", "last n (Eq. 16)"])
def test_map_lies_where_the_equations_index_the_attention_map(name, where, implementation):
    """The paper's own indexing of the (padded) matrix, written out on the map of each layer."""
    raw = where.startswith("first")
    options = {"positions": "raw"} if raw else {"align": "end"}
    model = adapted(name, "map", **options)
    model.base_model.model.set_attn_implementation(implementation)
    # Eq. 16 knows no pads; raw positions take them for tokens.
    ids, mask = pad(PROMPTS, "left") if raw else (torch.stack([PROMPTS[3], PROMPTS[3] + 1]), None)
    seen: list[Observation] = []
    with observe(seen.append):
        forward(model, input_ids=ids, attention_mask=mask)
    layers = [m for m in model.modules() if isinstance(m, LmamLayer)]
    assert len(seen) == len(layers) == 2
    for one, layer in zip(seen, layers, strict=True):
        low_rank = adapted_map(layer)
        low_rank = low_rank.tril() if name != "bert" else low_rank
        queries, width = ids.shape[1], ids.shape[1]
        full = torch.zeros(len(low_rank), queries, width)
        if raw:
            full[:, :LENGTH, :LENGTH] += low_rank
        else:
            full[:, -LENGTH:, -LENGTH:] += low_rank
        value = one.call.value.repeat_interleave(4 // one.call.value.shape[1], 1)
        assert_close(one.term.transpose(1, 2), full @ value)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_softmax_with_future_has_the_future_that_is_there_when_it_runs(name, cache):
    """A prefill gives weight to later tokens of the prompt; a step has none, and none is made."""
    model = adapted(name, "softmax_with_future")
    prompt, later = PROMPTS[0], PROMPTS[1][:2]  # three tokens and two more, of a map of six
    store = DynamicCache(config=model.config)
    if cache == "static":
        store = StaticCache(config=model.config, max_cache_len=9)
    first = forward(model, input_ids=prompt[None], past_key_values=store, use_cache=True)
    assert_close(first[0], alone(model, prompt))
    assert (first[0, 0] - alone(model, prompt[:1])[0]).abs().max() > 0.01

    layers = [m for m in model.modules() if isinstance(m, LmamLayer)]
    for token in later:
        seen: list[Observation] = []
        with observe(seen.append):
            forward(model, input_ids=token[None, None], past_key_values=store, use_cache=True)
        size = store.get_seq_length()
        for one, layer in zip(seen, layers, strict=True):
            weights = adapted_map(layer)[:, size - 1, :size].softmax(-1)
            value = one.call.value[:, :, :size].repeat_interleave(4 // one.call.value.shape[1], 1)
            expected = torch.einsum("hk,bhkd->bhd", weights, value)
            assert_close(one.term[:, 0], expected)

    # And so for a batch whose prompts are padded, each as it goes alone.
    ids, mask = pad(PROMPTS, "left")
    options = {**GREEDY, "cache_implementation": cache, "output_logits": True,
               "return_dict_in_generate": True}  # fmt: skip
    together = model.generate(input_ids=ids, attention_mask=mask, **options)
    for i, sample in enumerate(PROMPTS):
        single = model.generate(input_ids=sample[None], **options)
        assert together.sequences[i, -NEW:].tolist() == single.sequences[0, -NEW:].tolist()
        assert_close(torch.stack(together.logits, 1)[i], torch.stack(single.logits, 1)[0])


def adapted_map(layer: LmamLayer) -> Tensor:
    """The map of a layer, written out."""
    w_a, w_b = layer.lora_w_a["default"].detach(), layer.lora_w_b["default"].detach()
    pe = 10000.0 ** (-2.0 * torch.arange(LENGTH) / LENGTH)
    return (w_a + pe[:, None]) @ (w_b + pe) / layer.configs["default"].inverse_scale


def table() -> str:
    """The matrix as it is in docs/exact.md: how many variants run in each cell."""
    names = (*DECODERS, "bert")
    lines = ["| form of the batch | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for cell in CELLS:
        counts = [sum(m[:2] == (name, cell) for m in MATRIX) for name in names]
        lines.append(f"| {cell} | " + " | ".join(str(count or "—") for count in counts) + " |")
    variants = ", ".join(f"`{name}`" for name in VARIANTS)
    return "\n".join(["", *lines, "", f"{len(MATRIX)} cells. Variants: {variants}.", ""])


def test_page_has_the_matrix():
    before, _, rest = PAGE.read_text().partition(BEGIN)
    if os.environ.get("LORADA_WRITE_DOCS"):
        PAGE.write_text(before + BEGIN + table() + rest[rest.index(END) :])
    assert PAGE.read_text().partition(BEGIN)[2].partition(END)[0] == table()
