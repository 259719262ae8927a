"""Every method by name, on models it is defined on: its start, trained, saved, loaded.

``selected`` of ``method_cases`` chooses the models of each method.
"""

import json

import pytest
import torch
from architectures import inputs, logits
from conftest import assert_close
from folders import bert_folder, byte_tokenizer, llama_folder, refused, rows_file
from method_cases import (
    BUILDERS,
    CASES,
    FURTHER_CASES,
    UNDEFINED,
    defined,
    placed,
    refusal,
    selected,
    small,
)
from stacks import assert_loads, randomise, starts_as_base

from lorada import METHODS
from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.methods.lookup import method_named
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

pytestmark = pytest.mark.fp64

PLUGGED = ("lora", "dora", "series", "parallel", "quanta", "longlora")


@pytest.mark.parametrize(
    ("name", "model"), [*selected(CASES), *selected(FURTHER_CASES)], ids=lambda part: part
)
def test_a_method_starts_and_trains_as_it_says_and_comes_back_from_its_file(name, model, tmp_path):
    batch, plain = inputs(model), BUILDERS[model]()
    adapted, plan = placed(name, model, batch)
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    if plan.config is None:
        assert METHODS[name].trains != "biases" or all(n.endswith("bias") for n in trained)
        return
    own = ["lora_", "shira_"]
    if any(getattr(part, "modules_to_save", None) for part in plan.config.parts):
        own.append("modules_to_save")
    assert all(any(f".{key}" in n for key in own) for n in trained)
    if starts_as_base(plan.config):
        assert_close(logits(adapted, **batch), logits(plain, **batch))
    else:
        assert (logits(adapted, **batch) - logits(plain, **batch)).abs().max() > 1e-4
    randomise(adapted)
    changed = logits(adapted, **batch)
    with adapted.disable_adapter():
        assert_close(logits(adapted, **batch), logits(plain, **batch))
    assert not torch.allclose(changed, logits(plain, **batch), atol=1e-3)
    assert_loads(adapted, BUILDERS[model](), tmp_path, batch)


@pytest.mark.parametrize(("name", "model"), UNDEFINED, ids=lambda part: part)
def test_a_method_is_refused_in_words_where_it_has_no_form(name, model):
    refused(refusal(name, model), lambda: placed(name, model, inputs(model)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where rows are, and models, which are made when they are first asked for."""
    root = tmp_path_factory.mktemp("models")
    rows_file(root / "rows.jsonl")
    judged = [{"text": "ab" * (i % 5 + 1), "label": "yn"[i % 2]} for i in range(24)]
    rows_file(root / "labels.jsonl", judged)
    tokenizer = byte_tokenizer()

    def made(name):
        if name == "llama":
            return llama_folder(root / name, num_hidden_layers=5)
        if name == "bert":
            return bert_folder(root / name)
        narrower = {"embedding_size": 16} if name == "electra" else {}
        BUILDERS[name](vocab_size=len(tokenizer), **narrower).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        return root / name

    return lambda name: root / name if (root / name).exists() else made(name)


def runnable() -> list:
    """Each method on the kind of model that the paper has it for, a decoder where it has both.

    Those that are parts alone train through the same code, so only a few are not slow. Models that
    the paper does not have are there with one method each.
    """
    cases = [("dora", "electra"), ("prefix", "t5"), ("lora", "gpt2")]
    for name in [*METHODS, *(f"{name}+lmam" for name in PLUGGED)]:
        method = method_named(name)
        decodes = defined(name, "llama") and "llama" in (method.parts or ["llama"])
        own = method.callbacks or method.prepare or method.trainable
        slow = [] if own or name in ("lora+lmam", "mam", "lorada_la") else [pytest.mark.slow]
        cases.append(pytest.param(name, "llama" if decodes else "bert", marks=slow))
    return cases


@pytest.mark.fp64(False)
@pytest.mark.parametrize(("name", "model"), runnable(), ids=lambda part: part)
def test_a_method_by_name_trains_saves_and_scores(name, model, folder, tmp_path):
    rows = folder("labels.jsonl" if model in ("bert", "electra") else "rows.jsonl")
    pairs = [f"{part}.{key}={json.dumps(value)}" for part, values in small(name).items()
             for key, value in values.items()]  # fmt: skip
    pairs += ["max_steps=4", "per_device_train_batch_size=4", "report_to=[]", "logging_steps=1"]
    options = {"method": name, "model": str(folder(model)), "data": str(rows)}
    recipe = load_recipe(None, pairs, {**options, "output": str(tmp_path / "run")})
    result = train(recipe, quiet=True).result
    assert result["steps"] == 4
    assert result["parameters"]["trainable"] > 0
    if model not in ("llama", "bert"):
        assert result["settings_from"].startswith("not from the paper") == (model == "electra")
    metrics = evaluate(load_run(tmp_path / "run"), str(rows))
    assert metrics["n"] == sum(1 for _ in rows.open())
