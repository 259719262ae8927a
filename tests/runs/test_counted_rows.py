"""A training counts the rows that had each position of its map; the adapter keeps the counts."""

import pytest
from folders import bart_folder, llama_folder, rows_file
from peft import AutoPeftModelForCausalLM
from trained import before_its_end, run_recipe

from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train
from lorada.tuners.lmam import LmamLayer, map_configs

ROWS = [{"prompt": "a" * size, "response": "b"} for size in (2, 2, 2, 5, 9)]
COUNTS = [5, 5, 5, 5, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0]  # one token for each byte, and the end
SETTINGS = [
    "lmam.length=14", "max_length=32", "max_steps=2", "report_to=[]", "learning_rate=0.1",
    "per_device_train_batch_size=2", "save_strategy=steps", "save_steps=1", "lmam.heads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return llama_folder(tmp_path_factory.mktemp("models") / "llama")


def trained(place, model, *overrides):
    rows_file(place / "rows.jsonl", ROWS)
    given = {"model": model, "rows": "rows", "method": "lorada_la"}
    return train(run_recipe(SETTINGS, place, place / "run", *overrides, **given), quiet=True).run


@pytest.mark.parametrize("packing", ["false", "true"])
def test_a_saved_map_holds_its_rows_and_its_card_says_them(llama, packing, tmp_path):
    run = trained(tmp_path, llama, f"packing={packing}")
    model = AutoPeftModelForCausalLM.from_pretrained(run / "adapter")
    (config,) = map_configs(model, "default")
    assert config.rows_by_position == COUNTS
    card = " ".join((run / "adapter" / "README.md").read_text().split())
    assert "Of 5 training rows half had 4 of them or more, a tenth 11, the longest 11." in card


def test_a_training_that_goes_on_counts_its_rows_once(llama, tmp_path):
    cut = before_its_end(trained(tmp_path, llama), tmp_path / "cut")
    recipe = load_recipe(cut / "recipe.yaml", [], {"output": str(cut)})
    more = train(recipe, quiet=True, resume=True)
    assert more.result["resumed_from"] == "checkpoint-1"
    (config,) = map_configs(load_run(more.run).model, "default")
    assert config.rows_by_position == COUNTS


def test_a_map_cut_to_well_trained_positions_is_loaded_as_it_was_trained(llama, tmp_path):
    run = load_run(trained(tmp_path, llama, "lmam.min_rows=2", "lmam.init_weights=false"))
    (config,) = map_configs(run.model, "default")
    assert config.min_rows == 2
    loaded = evaluate(run, data=str(run.folder.parent / "rows.jsonl"))["loss"]
    for layer in run.model.modules():
        if isinstance(layer, LmamLayer):
            full = layer.maps()[0].dense()
            assert full[:, :7, :7].all()
            assert not full[:, 7:].any()
            assert not full[..., 7:].any()
    config.min_rows = 0
    assert evaluate(run, data=str(run.folder.parent / "rows.jsonl"))["loss"] != loaded


def test_an_encoder_decoder_has_no_such_counts(tmp_path):
    bart = bart_folder(tmp_path / "bart")
    with pytest.raises(ValueError, match=r"^lmam.min_rows=2 needs rows counted by position"):
        trained(tmp_path, bart, "lmam.min_rows=2")
