"""What is counted before a training: parameters, and the memory of a step."""

from contextlib import nullcontext

import pytest
from count_paper_parameters import PAGE, ROWS, SCRIPT, line, page
from folders import bart_folder, bert_folder, llama_folder, rows_file
from library.page import read_marked

from lorada.support.models import MODELS
from lorada.training import training_memory as computed
from lorada.training.inputs import prepare_training
from lorada.training.load_recipe import load_recipe
from lorada.training.models import labelled_loss
from lorada.training.models.loading import load_config, model_folder
from lorada.training.parameter_counts import count_parameters
from lorada.training.training_memory import memory_of, training_memory

CANDIDATES = [{"prompt": "a", "candidates": [" b", " c", " d"], "answer": 0}] * 4


def recipe_for(folder, method="lora", *pairs):
    options = {"method": method, "model": str(folder), "output": "-"}
    batch = "per_device_train_batch_size=3"
    return load_recipe(None, [batch, "max_length=24", *pairs], options)


def same(left, right):
    return all(getattr(left, part) == pytest.approx(getattr(right, part)) for part in vars(left))


@pytest.mark.parametrize(
    ("make", "method", "checkpointing"),
    [
        (llama_folder, "lora", "off"), (bert_folder, "lora", "off"), (bart_folder, "lora", "off"),
        (llama_folder, "lora", "full"), (llama_folder, "lorada_la", "full"),
    ],
)  # fmt: skip
def test_fake_tensors_need_what_real_ones_do(tmp_path, make, method, checkpointing, monkeypatch):
    setting = f"activation_checkpointing={checkpointing}"
    recipe = recipe_for(make(tmp_path / "model"), method, setting)
    fake = training_memory(recipe)
    # The same steps on real tensors, whatever their values are.
    monkeypatch.setattr(computed, "FakeTensorMode", lambda **options: nullcontext())
    real = training_memory(recipe)
    if make is bart_folder:  # it leaves out a mask that hides nothing, and a fake one has no values
        assert real.activations < fake.activations < 1.02 * real.activations
    elif checkpointing == "full":
        assert fake.activations == pytest.approx(real.activations, rel=0.01)
    else:
        assert same(fake, real)


def test_recomputing_activations_and_smaller_batches_need_less(tmp_path):
    folder = llama_folder(tmp_path / "llama", num_hidden_layers=4)
    plain = training_memory(recipe_for(folder))
    again = training_memory(recipe_for(folder, "lora", "gradient_checkpointing=true"))
    assert again.activations < plain.activations / 2
    assert same(training_memory(recipe_for(folder, "lora", "activation_checkpointing=full")), again)
    one = training_memory(recipe_for(folder, "lora", "per_device_train_batch_size=1"))
    assert one.activations < plain.activations / 2
    assert one.weights == plain.weights


def test_memory_of_a_training_counts_each_candidate_and_no_more_than_a_model_can_read(tmp_path):
    folder = llama_folder(tmp_path / "llama")
    data = rows_file(tmp_path / "rows.jsonl", CANDIDATES)
    recipe = recipe_for(folder, "lora", f"data={data}", "max_length=999")
    found = memory_of(prepare_training(recipe), "off")
    read = recipe.model_copy(update={"max_length": 64})
    assert same(found, training_memory(read, candidates=3))
    assert not same(found, training_memory(read))


def test_logits_count_for_a_chunk_of_tokens_unless_the_head_trains(tmp_path, monkeypatch):
    folder = llama_folder(tmp_path / "llama")
    config = load_config(str(folder))
    config.vocab_size = 5000  # so that the logits are the peak
    config.save_pretrained(folder)
    logits = 4 * 3 * 23 * config.vocab_size  # bytes, of all tokens
    methods = "lora", "full"
    whole = [training_memory(recipe_for(folder, method)).activations for method in methods]
    monkeypatch.setattr(labelled_loss, "CHUNK_BYTES", 1)  # one token at a time
    found = [training_memory(recipe_for(folder, method)).activations for method in methods]
    assert found[0] < whole[0] - 0.9 * logits
    assert found[1] == whole[1]


def test_bits_of_a_quantised_base_are_counted_and_its_head_is_not_quantised(tmp_path):
    folder = llama_folder(tmp_path / "llama")
    recipe = recipe_for(folder, "lora", "dtype=bfloat16")
    whole = training_memory(recipe)
    config = load_config(str(folder))
    width, inner, groups = config.hidden_size, config.intermediate_size, config.num_key_value_heads
    keys = groups * width // config.num_attention_heads
    layer = width * (2 * width + 2 * keys + 3 * inner)
    for bits, each in (("int8", 8), ("nf4", 4 + 8 / 64 + 32 / (64 * 256))):
        found = training_memory(recipe.model_copy(update={"quantization": bits}))
        saved = config.num_hidden_layers * layer * (2 - each / 8)
        assert whole.weights - found.weights == pytest.approx(saved)
        assert found.activations == whole.activations


def test_an_8b_model_in_bfloat16_fits_on_a_card_of_24_gib_if_activations_are_recomputed():
    options = {"method": "lora+lmam", "model": "llama3-8b", "output": "-"}
    recipe = load_recipe(None, [], options)
    assert recipe.max_length == 512
    settings = {"dtype": "bfloat16", "activation_checkpointing": "full"}
    assert training_memory(recipe.model_copy(update=settings)).total < 24 * 2**30


# N of the published models.
TOTALS = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama2-7b": 6_738_415_616,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "roberta-base": 124_645_632,
    "deberta-v3-base": 183_831_552,
    "bart-large": 406_291_456,
    "mbart-large": 610_851_840,
}


def test_every_named_model_has_the_parameters_of_the_published_one():
    assert TOTALS.keys() == {name for name, model in MODELS.items() if model.sizes}
    for name, total in TOTALS.items():
        assert count_parameters("full", name, [])["total"] == total


def test_a_name_without_weights_cannot_be_trained_on():
    with pytest.raises(ValueError, match="llama-7b names an architecture without weights"):
        model_folder("llama-7b")


def test_some_rows_of_the_page_are_what_the_command_counts():
    lines = read_marked(PAGE, SCRIPT).splitlines()
    for row in ROWS[1::9]:
        assert line(row) in lines


@pytest.mark.slow
def test_the_page_is_what_the_command_writes():
    assert read_marked(PAGE, SCRIPT) == page([line(row) for row in ROWS])
