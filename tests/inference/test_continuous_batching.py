"""Answers from a batch that is refilled are those of ``generate``, prompt by prompt."""

import pytest
import torch
from architectures import ARCHITECTURES
from conftest import assert_close
from exact_cells import VARIANTS, adapted
from method_cases import defined, inputs, placed
from peft import PeftModel
from torch import Tensor

from lorada import METHODS, LmamConfig
from lorada.inference.continuous_batching import Writer, write_answers
from lorada.inference.continuous_batching_cache import ROOM, RefilledCache, can_be_refilled

PAD = 0
ENDS = list(range(5, 96, 9))  # so many that answers have all lengths up to the limit
LENGTHS = (3, 17, 1, 9, 6, 12, 2, 5, 8, 4, 14)  # shorter and longer than the maps of 6 tokens
PROMPTS = [(torch.arange(7, 7 + n) * (3 * n + 4) % 83 + 6).tolist() for n in LENGTHS]
LIMIT = 9
DECODERS = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gpt2", "gptj", "gpt_neox",
    "opt", "phi",
)  # fmt: skip


def is_end(ids: Tensor) -> Tensor:
    return torch.isin(ids[:, -1], torch.tensor(ENDS))


def never(ids: Tensor) -> Tensor:
    return torch.zeros(len(ids), dtype=torch.bool)


def refilled(model, prompts=PROMPTS, *, size=3, limit=LIMIT, ended=is_end) -> list[list[int]]:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    found = {}
    for number, ids in write_answers(Writer(base, ended, limit, PAD, size), prompts):
        assert number not in found
        found[number] = ids.tolist()
    return [found[number] for number in range(len(prompts))]


def one_by_one(model, prompts=PROMPTS, *, limit=LIMIT, **options) -> list[list[int]]:
    options = {"eos_token_id": ENDS, "pad_token_id": PAD, "max_new_tokens": limit} | options
    return [
        model.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long(),
            do_sample=False, **options,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]  # fmt: skip


def moved(model):
    """The model with weights of its adapter far from their start."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.5)
    return model


def same_answers(model) -> None:
    answers = one_by_one(model)
    assert refilled(model) == answers
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            without = one_by_one(model)
            assert refilled(model) == without
        assert answers != without


# Every method on one model, and the methods of a kind on the others in turn.
COMMON = ("lora", "lmam", "lorada_la", "adapter_ffn", "prefix")
OFTEN = [*((name, "llama") for name in COMMON), ("lorada_la", "gpt2")]
RARELY = [
    *((name, "llama") for name in sorted(METHODS)[::5]),
    *((COMMON[n % len(COMMON)], model) for n, model in enumerate(DECODERS[1:])),
]
PAIRS = [
    *(pytest.param(*pair, id="-".join(pair)) for pair in OFTEN),
    *(
        pytest.param(*pair, id="-".join(pair), marks=pytest.mark.slow)
        for pair in RARELY
        if pair not in OFTEN and defined(*pair)
    ),
]


@pytest.mark.fp64
@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_answers_are_those_of_generate(name, model):
    same_answers(moved(placed(name, model, inputs(model))[0]))


@pytest.mark.fp64
@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted(VARIANTS)[::2])
def test_answers_with_every_form_of_a_map_are_those_of_generate(variant):
    same_answers(adapted("llama", variant))


@pytest.mark.more
@pytest.mark.fp64
def test_the_active_adapter_of_several_answers():
    model = adapted("llama", "map")
    model.add_adapter("second", LmamConfig(rank=3, length=9, init_weights=False))
    first = refilled(model)
    assert first == one_by_one(model)
    model.set_adapter("second")
    assert refilled(model) == one_by_one(model) != first


@pytest.mark.more
@pytest.mark.fp64
def test_answers_do_not_depend_on_how_many_rows_are_written_at_once():
    model = adapted("llama", "map")
    expected = one_by_one(model)
    assert [refilled(model, size=size) for size in (1, 2, 5, 40)] == [expected] * 4
    assert refilled(model, []) == []


@pytest.mark.more
@pytest.mark.fp64
def test_answers_longer_than_the_room_of_the_cache_are_those_of_generate():
    model, limit = adapted("llama", "map"), 2 * ROOM + 3
    expected = one_by_one(model, PROMPTS[:5], limit=limit, eos_token_id=None)
    assert {len(answer) for answer in expected} == {limit}
    assert refilled(model, PROMPTS[:5], limit=limit, ended=never, size=2) == expected


def test_the_cache_never_holds_more_than_a_batch_of_the_longest_prompts(monkeypatch):
    held = []
    original = RefilledCache.refill

    def refill(cache, *arguments):
        original(cache, *arguments)
        held.append(cache.layers[0].keys.shape[0] * (cache.layers[0].keys.shape[2]))

    monkeypatch.setattr(RefilledCache, "refill", refill)
    prompts = [[9] * n for n in range(30, 0, -1)]
    refilled(adapted("llama", "map"), prompts, size=4)
    assert held
    assert max(held) <= 4 * (30 + LIMIT)


def test_rows_that_have_ended_need_no_further_positions():
    # GPT-2 has a learned vector for each position, and none for a token beyond its context.
    model = ARCHITECTURES["gpt2"](n_positions=LIMIT + 17)
    assert max(LENGTHS) == 17
    assert refilled(model, ended=never, size=8) == one_by_one(model, eos_token_id=None)


def test_a_cache_of_something_other_than_keys_and_values_is_not_refilled():
    from transformers import LlamaConfig, Qwen3NextConfig

    assert can_be_refilled(LlamaConfig())
    assert not can_be_refilled(Qwen3NextConfig(num_hidden_layers=4))


@pytest.mark.fp64
def test_what_is_left_behind_by_rows_that_go_is_not_read():
    base, cache, longer = adapted("llama", "map").get_base_model(), RefilledCache(), RefilledCache()
    ids, positions = torch.tensor([[0, 9, 8], [7, 9, 8]]), torch.tensor([[0, 0, 1], [0, 1, 2]])
    with torch.no_grad():
        base(input_ids=ids, attention_mask=(ids > 0).long(), position_ids=positions, cache=cache)
        base(input_ids=torch.tensor([[5, 6, 7, 8, 9]]), cache=longer)
        cache.layers[0].keys[1] = cache.layers[0].values[1] = float("nan")
        cache.refill([0], 2, longer)
        step = {"input_ids": torch.tensor([[5], [4]]), "position_ids": torch.tensor([[2], [5]])}
        mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
        logits = base(**step, attention_mask=mask, cache=cache).logits[:, 0]
        alone = [base(input_ids=torch.tensor([row])).logits[0, -1]
                 for row in ([9, 8, 5], [5, 6, 7, 8, 9, 4])]  # fmt: skip
    assert_close(logits, torch.stack(alone))
