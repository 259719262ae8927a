"""The loss of each row to keep, by transformers itself; and smaller scales of an adapter."""

import math

import pytest
import torch
from folders import ROWS, llama_folder, rows_file
from trained_runs import train_once

from lorada.data.rows.kept_rows import Learned, kept_rows
from lorada.inference.adapter_scale import scaled_adapter, why_no_scale
from lorada.inference.load import load_run, load_untrained
from lorada.inference.row_losses import row_losses

SETTINGS = [
    "per_device_train_batch_size=4", "report_to=[]", "max_steps=3", "max_length=32",
    "save_strategy=no", "learning_rate=0.05",
]  # fmt: skip
RUNS = {
    name: ("llama", method, "rows", [])
    for name, method in {
        "lora": "lora", "map": "lmam", "both": "lora+lmam", "dora": "dora", "ia3": "ia3",
        "full": "full",
    }.items()
}  # fmt: skip
KEPT = [{"prompt": f"row {n}: ", "response": "ab" * (n + 1)} for n in range(6)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("kept")
    llama_folder(place / "llama")
    rows_file(place / "rows.jsonl", ROWS[:27])
    rows_file(place / "kept.jsonl", KEPT)
    rows_file(place / "texts.jsonl", [{"text": "ab c" * 20}, {"text": "a"}, {"text": "b c d"}])
    return place


@pytest.fixture(scope="module")
def run(place):
    return lambda name: load_run(train_once(place, name, RUNS, SETTINGS))


def rows_in(place, name="kept"):
    learned = Learned("prompt", (), None, "decoder")
    (rows,) = kept_rows(str(place / f"{name}.jsonl"), learned).by_name.values()
    return rows


def loss_of(model, ids, first):
    """The mean loss of the tokens from the place ``first`` on."""
    labels = torch.tensor([[-100] * first + ids[first:]])
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids]), labels=labels).loss)


def test_each_row_has_the_loss_of_its_response_without_the_token_that_ends_it(place, run):
    loaded = run("lora")
    tokenizer = loaded.tokenizer
    losses = row_losses(loaded, rows_in(place))
    for row, loss in zip(KEPT, losses, strict=True):
        prompt = tokenizer(row["prompt"])["input_ids"]
        response = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        assert loss == pytest.approx(
            loss_of(loaded.model, prompt + response, len(prompt)), rel=1e-5
        )
    untrained = load_untrained(loaded.recipe, "prompt")
    of_base = row_losses(untrained, rows_in(place))
    assert of_base == pytest.approx(row_losses(loaded, rows_in(place), base=True), rel=1e-5)
    assert max(abs(a - b) for a, b in zip(losses, of_base, strict=True)) > 1e-3


def test_a_text_longer_than_max_length_is_one_row_and_one_without_a_second_token_has_no_loss(
    place, run
):
    loaded = run("lora")
    long, lone, short = row_losses(loaded, rows_in(place, "texts"))
    ids = loaded.tokenizer("ab c" * 20)["input_ids"]
    pieces = [ids[start : start + 32] for start in range(0, len(ids), 32)]
    total = sum(loss_of(loaded.model, piece, 1) * (len(piece) - 1) for piece in pieces)
    assert long == pytest.approx(total / sum(len(piece) - 1 for piece in pieces), rel=1e-5)
    begins = len(loaded.tokenizer("a")["input_ids"]) > 1  # with a token that begins every text
    assert (lone is not None and math.isfinite(lone)) if begins else lone is None
    ids = loaded.tokenizer("b c d")["input_ids"]
    assert short == pytest.approx(loss_of(loaded.model, ids, 1), rel=1e-5)


@pytest.mark.parametrize("name", ["lora", "map", "both"])
def test_a_scale_of_0_is_the_base_and_1_the_run_for_lora_maps_and_both(place, run, name):
    loaded, rows = run(name), rows_in(place)
    assert why_no_scale(loaded, rows) == ""
    whole, base = row_losses(loaded, rows), row_losses(loaded, rows, base=True)
    at = {}
    for scale in (0.0, 0.5, 1.0):
        with scaled_adapter(loaded.model, scale):
            at[scale] = row_losses(loaded, rows)
    assert at[0.0] == pytest.approx(base, rel=1e-5)
    assert at[1.0] == pytest.approx(whole, rel=1e-6)
    assert row_losses(loaded, rows) == pytest.approx(whole, rel=1e-6)  # it is as it was before
    for others in (whole, base):
        assert max(abs(a - b) for a, b in zip(at[0.5], others, strict=True)) > 1e-4


def test_half_a_scale_of_lora_is_half_its_alpha(place, run):
    loaded, rows = run("lora"), rows_in(place)
    with scaled_adapter(loaded.model, 0.5):
        scaled = row_losses(loaded, rows)
    for module in loaded.model.modules():
        if hasattr(module, "lora_B"):
            with torch.no_grad():
                module.lora_B["default"].weight.mul_(0.5)
    assert scaled == pytest.approx(row_losses(loaded, rows), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dora", "at 0 it would not be the model as it was"),
        ("ia3", "at 0 it would not be the model as it was"),
        ("full", "it has trained the model's own weights"),
    ],
)
def test_a_method_without_a_scale_says_so(place, run, name, why):
    assert why in why_no_scale(run(name), rows_in(place))
