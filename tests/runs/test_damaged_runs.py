"""A run folder or an adapter that is damaged, or lies on another base, ends in one line."""

import json
import random
import shutil
from functools import partial

import pytest
import torch
from folders import ROWS, llama_folder, mistral_folder, refused
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from trained_runs import QUICK, run_recipe
from transformers import AutoModelForCausalLM

from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run, warn_of_other_revision
from lorada.runs.result import read_result
from lorada.support.error_messages import out_of_memory
from lorada.training.train import train

SETTINGS = [*QUICK, "max_steps=2", "max_new_tokens=2", "save_strategy=no"]
recipe = partial(run_recipe, SETTINGS, rows="few")
ROW_FILES = {"few": ROWS[:8]}
RUNS = {
    "lorada_la": ("llama", "lorada_la", "few", []),
    "full": ("llama", "full", "few", []),
    "lora": ("bert", "lora", "labels", []),
}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def mistral(place):
    mistral_folder(place / "mistral")


def saved_lora(place, target, **changes):
    """A plain adapter of PEFT on the tiny LLaMA, with values of its config changed by hand."""
    base = AutoModelForCausalLM.from_pretrained(place / "llama")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(target)


OTHER = "trained on a llama model and does not belong on a mist"


def start_from(adapter, place, output, *, overwrite=False, **options):
    """Train a map beside the parts of an adapter."""
    asked = recipe(place, output, method="lmam", from_adapter=str(adapter), **options)
    return train(asked, overwrite=overwrite, quiet=True)


def test_an_adapter_of_ours_or_the_base_that_a_plain_one_names_says_what_it_was_trained_on(
    place, folder, tmp_path
):
    ours = shutil.copytree(folder("lorada_la") / "adapter", tmp_path / "adapter")
    path = ours / "adapter_config.json"
    config = json.loads(path.read_text())
    assert config["base_model_type"] == "llama"
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(tmp_path / "gone")}))
    for adapter in (ours, saved_lora(place, tmp_path / "plain")):
        refused(OTHER, partial(start_from, adapter, place, tmp_path / "run", model="mistral"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("base", [None, "nobody/has-this"])
def test_an_adapter_of_which_nobody_knows_the_base_is_taken_where_it_fits(place, tmp_path, base):
    """As one is that an earlier version saved."""
    folder = saved_lora(place, tmp_path / "a", base_model_name_or_path=base)
    run = start_from(folder, place, tmp_path / "run", model="mistral").run
    assert any("lora_A" in key for key in load_file(run / "adapter" / WEIGHTS))


def test_tensors_that_have_no_place_are_refused(place, folder, tmp_path):
    extra = {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(2, 32)}
    plain = saved_lora(place, tmp_path / "plain")
    run = shutil.copytree(folder("lorada_la"), tmp_path / "run")
    for path in (tmp_path / "plain" / WEIGHTS, run / "adapter" / WEIGHTS):
        save_file({**load_file(path), **extra}, path)
    for use in (lambda: start_from(plain, place, tmp_path / "new"), lambda: load_run(run)):
        refused(r"this model has no place for .*layers\.7", use)


@pytest.mark.parametrize(("name", "value"), [("r", "x"), ("target_modules", 3), ("peft_type", [])])
def test_a_setting_of_a_foreign_adapter_of_the_wrong_type_is_one_line(place, tmp_path, name, value):
    folder = saved_lora(place, tmp_path / "a", **{name: value})
    refused(".", lambda: start_from(folder, place, tmp_path / "run"))


def test_an_adapter_is_not_loaded_onto_a_base_of_another_kind(place, tmp_path, caplog):
    base = shutil.copytree(place / "llama", tmp_path / "base")
    run = train(recipe(place, tmp_path / "run", model=base, method="lorada_la"), quiet=True).run
    result = read_result(run)
    assert result.base_revision is None  # a folder has none
    for before, now in ((None, "b"), ("a", None), ("a", "a")):
        warn_of_other_revision(now, result.model_copy(update={"base_revision": before}), run)
    assert "was trained on revision" not in caplog.text
    warn_of_other_revision("b", result.model_copy(update={"base_revision": "a"}), run)
    assert "run was trained on revision a of" in caplog.text
    shutil.rmtree(base)
    mistral_folder(base)
    refused(OTHER, lambda: load_run(run))
    shutil.rmtree(base)
    llama_folder(base, hidden_size=64)
    refused("saved for another model size", lambda: load_run(run))


WRONG = [None, "x", -1, 0, 2.5, [], {}, [1], {"a": 1}, True, float("inf"), ["x"]]


def harms(path, chance):
    """What a damaged disk, a stopped copy or a careless hand makes of a file, some of it drawn."""
    whole = path.read_bytes()
    yield from (b"", whole[: len(whole) // 2], whole[:-1], chance.randbytes(200))
    for _ in range(3):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        yield bytes(data)
    if path.suffix in (".json", ".yaml"):
        yield from (b"null", b"[]", b"{}", b"3", b'"x"')
    if path.suffix == ".json":
        for key in chance.sample(sorted(json.loads(whole)), min(6, len(json.loads(whole)))):
            yield json.dumps({k: v for k, v in json.loads(whole).items() if k != key}).encode()
            yield json.dumps({**json.loads(whole), key: chance.choice(WRONG)}).encode()


THOROUGH = "result.json", "adapter/adapter_config.json"


def check_harm(run, data, name, chance, most):
    path = run / name
    whole, result = path.read_bytes(), (run / "result.json").read_bytes()
    found = [*harms(path, chance)]
    for harm in chance.sample(found, min(most, len(found))):
        path.write_bytes(harm)
        try:
            evaluate(load_run(run), data)
        except (ValueError, OSError, ImportError):
            pass
        except RuntimeError as error:  # of which the command says a line too
            if not out_of_memory(error):
                raise
        path.write_bytes(whole)
        (run / "result.json").write_bytes(result)


@pytest.mark.parametrize("method", RUNS)
def test_whatever_happens_to_any_file_of_a_run_evaluate_ends_in_a_line_or_well(
    place, folder, tmp_path, method
):
    run = shutil.copytree(folder(method), tmp_path / "run")
    names = sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file())
    assert len(names) > 4
    data = str(place / f"{RUNS[method][2]}.jsonl")
    for name in names:
        most = 99 if method == "lora" and name in THOROUGH else 1
        check_harm(run, data, name, random.Random(len(name)), most)
