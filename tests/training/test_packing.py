"""Packed training rows: which share a sequence, and that each trains as it would alone."""

from functools import partial

import pytest
import torch
from conftest import TINY, assert_close
from datasets import Dataset
from folders import byte_tokenizer, refused
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from trained_runs import run_recipe

from lorada import LmamConfig, LoradaConfig, PrefixConfig
from lorada.data.batches import IGNORED, collator
from lorada.data.tokenize import EncodeOptions, encode
from lorada.training.packing import best_fit, pack, packed_batch, refuse_mixing
from lorada.training.train import train

pytestmark = pytest.mark.fp64

ROWS = [{"prompt": "a" * size, "response": " yes"} for size in (3, 11, 5, 2, 8, 4)]
TOKENIZER = byte_tokenizer()
ROOM = 24
STACKS = {
    "map": [LmamConfig(rank=2, length=6, inverse_scale=2.0, init_weights=False)],
    "map and prefix": [
        PrefixConfig(length=3, init_weights=False),
        LmamConfig(rank=2, length=40, inverse_scale=2.0, init_weights=False),
    ],
}


def dataset() -> Dataset:
    return Dataset.from_list(
        [e.features for e in encode(ROWS, "prompt", TOKENIZER, EncodeOptions(ROOM))]
    )


@given(lengths=st.lists(st.integers(1, 9), max_size=30))
def test_every_row_is_in_one_sequence_and_none_is_too_long(lengths):
    found = best_fit(lengths, 9)
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
    sizes = [sum(lengths[row] for row in rows) for rows in found]
    assert all(size <= 9 for size in sizes)
    # No two sequences would have fitted into one.
    assert sum(sorted(sizes)[:2]) > 9 or len(sizes) < 2


def test_the_first_token_of_a_packed_row_is_not_learned():
    """As it stands behind the last one of another row, which must not foretell it."""
    rows = [[7, 8], [5, 6]]
    packed = pack(Dataset.from_dict({"input_ids": rows, "labels": rows}), 6)
    assert packed[0]["labels"] == [IGNORED, 8, IGNORED, 6]


@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.parametrize("stack", STACKS)
def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(name, stack):
    model = get_peft_model(TINY[name](vocab_size=300), LoradaConfig(parts=STACKS[stack]))
    rows, found = dataset(), []
    batches = (
        collator("prompt", TOKENIZER)([*rows]),
        packed_batch([*pack(rows, ROOM)], TOKENIZER.pad_token_id),
    )
    assert batches[1]["input_ids"].numel() < batches[0]["input_ids"].numel()
    for batch in batches:
        model.zero_grad()
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1].transpose(1, 2)
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED)
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((loss.detach(), *gradients))
    for padded, packed in zip(*found, strict=True):
        assert_close(packed, padded)


def test_a_model_that_would_mix_rows_is_refused(monkeypatch):
    model = TINY["llama"]()
    refuse_mixing(model, 2)
    monkeypatch.setattr(
        "transformers.masking_utils.find_packed_sequence_indices", lambda positions: None
    )
    refused("see each other", lambda: refuse_mixing(model, 2))


SETTINGS = ["packing=true", "max_length=24", "max_steps=2", "report_to=[]"]
recipe = partial(run_recipe, SETTINGS, rows="few")
CHOICE = {"prompt": "a", "candidates": [" b", " c"], "answer": 0}
ROW_FILES = {"few": ROWS, "choices": [CHOICE] * 4}


@pytest.mark.more
def test_a_recipe_trains_on_as_many_sequences_as_its_rows_fill(place, tmp_path):
    sequences = len(pack(dataset(), ROOM))
    assert sequences < len(ROWS)
    once = ("max_steps=-1", "num_train_epochs=1", "per_device_train_batch_size=1")
    held_out = (f"eval_data={place / 'few.jsonl'}", "eval_strategy=epoch")
    asked = recipe(place, tmp_path / "run", *once, *held_out, method="lorada_la")
    result = train(asked, quiet=True).result
    assert result.steps == sequences
    assert any("eval_loss" in entry for entry in result.history)


@pytest.mark.parametrize(("method", "rows", "pairs", "message"), [
    ("lora", "choices", [], "form 'choice'"),
    ("longlora", "few", [], "LongLoRA"),
    ("lorada_la", "few", ["training.torch_compile=true"], "torch_compile=true: in a comp"),
])  # fmt: skip
def test_what_cannot_be_packed_is_refused(place, tmp_path, method, rows, pairs, message):
    asked = recipe(place, tmp_path / "run", *pairs, method=method, rows=rows)
    refused(message, lambda: train(asked, quiet=True))
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_the_pads_of_a_batch_are_a_row_of_their_own():
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "position_ids": [0, 1, 0]},
        {"input_ids": [8], "labels": [8], "position_ids": [0]},
    ]
    batch = packed_batch(rows, pad=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert batch.keys() - {"input_ids", "labels", "position_ids"} == {"use_cache"}
