"""k batches of b rows are one batch of k·b rows: losses, gradients, weights, held-out losses.

    torchrun --nproc-per-node 2 test_accumulation.py FORM ARCHITECTURE FOLDER

trains 8 rows in two processes of two batches of one row for each step.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from conftest import VOCAB, assert_close
from datasets import Dataset
from double import in_double
from folders import byte_tokenizer
from peft import get_peft_model
from stacks import randomise
from transformers import AutoModelForSequenceClassification

from lorada import LmamConfig, LoradaConfig
from lorada.methods.build import Plan
from lorada.runs.data.dataset import collator
from lorada.runs.data.packing import PackedCollator, pack
from lorada.runs.data.rows import Rows
from lorada.runs.prepare import PreparedTraining
from lorada.runs.recipe import load_recipe
from lorada.runs.training.arguments import training_arguments
from lorada.runs.training.setup import make_trainer, trainer_class
from lorada.runs.training.trainer import RunTrainer
from lorada.tasks import TASKS
from lorada.tasks.tokenize import IGNORED

ENCODER_DECODERS = ("bart", "mbart", "t5")
HEADED = ("bert", "roberta", "deberta", "deberta_v2", "bart", "t5", "gpt2", "llama")
# Form of rows, architecture, settings: every way that a loss comes about.
SMOOTH = ("label_smoothing_factor=0.1",)
pytestmark = pytest.mark.fp64

CASES = [
    *((form, name, ()) for form in ("label", "score") for name in HEADED),
    *(("choice", name, ()) for name in ("adapted llama", "gpt2")),
    *((form, name, ()) for form in ("prompt", "text") for name in ("llama", "gpt2", "opt")),
    *(("prompt", name, settings) for settings in ((), SMOOTH) for name in ENCODER_DECODERS),
    ("prompt", "llama", SMOOTH),
    ("label", "bert", SMOOTH),
    ("prompt", "llama", ("packing=true",)),
    ("label", "adapted bert", ()),
    ("prompt", "adapted bart", ()),
    ("prompt", "adapted llama", ()),
]
# Of these, losses of a kind that another case has too.
ALIKE = [
    *(("label", name, ()) for name in ("roberta", "deberta", "deberta_v2", "gpt2")),
    *(("score", name, ()) for name in ("roberta", "deberta", "deberta_v2", "bart", "gpt2")),
    ("choice", "gpt2", ()),
    *((form, "opt", ()) for form in ("prompt", "text")),
    *(("prompt", "mbart", settings) for settings in ((), SMOOTH)),
]


def ids(length, start=0):
    return [5 + (start * 7 + i * 3) % (VOCAB - 10) for i in range(length)]


def features(form, name, number):
    """A row of ids whose length, and whose number of counted tokens, is its own."""
    text = ids(4 + 3 * (number % 4), number)
    if form in ("label", "score"):
        label = number % 3 if form == "label" else 0.3 * number - 1
        return {"input_ids": [*text, 2], "attention_mask": [1] * (len(text) + 1), "labels": label}
    answer = [*ids(1 + number % 3, number + 1), 2]
    if form == "choice":
        candidates = [answer, ids(2, number)]
        return {"prompt": text, "candidates": candidates, "answer": number % 2}
    if name.split()[-1] in ENCODER_DECODERS:
        return {"input_ids": text, "attention_mask": [1] * len(text), "labels": answer}
    whole = text + answer
    hidden = 0 if form == "text" else len(text)
    labels = [IGNORED] * hidden + whole[hidden:]
    return {"input_ids": whole, "attention_mask": [1] * len(whole), "labels": labels}


def built(form, name):
    """A tiny model in fp64 without dropout, with a head or an adapter where the case has one."""
    adapted, name = name.startswith("adapted "), name.split()[-1]
    model = ARCHITECTURES[name]()
    if form in ("label", "score"):
        model.config.num_labels = 3 if form == "label" else 1
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(model.config)
    if adapted:
        model = get_peft_model(model, LoradaConfig(parts=[LmamConfig(rank=2, length=8)]))
        randomise(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):  # what attention gives functions
            module.dropout = 0.0
    return model.double()


def trained(form, name, settings, tmp_path, batch, steps, rows_count=7):
    """A Trainer that has trained an epoch of 7 rows; ``steps`` batches for each update."""
    pairs = [
        f"per_device_train_batch_size={batch}", f"gradient_accumulation_steps={steps}",
        f"per_device_eval_batch_size={batch + 1}", "num_train_epochs=1", "logging_steps=1",
        "report_to=[]",
        "optim=sgd", "learning_rate=0.05", "warmup_steps=0", "max_grad_norm=0", "save_strategy=no",
        "eval_strategy=epoch", "use_cpu=true", *settings,
    ]  # fmt: skip
    recipe = load_recipe(None, pairs, {"model": "none", "output": str(tmp_path / "run")})
    model, tokenizer = built(form, name), byte_tokenizer()
    rows = Rows([], form, ("a", "b", "c"), "rows", TASKS["jsonl"].protocols[form])
    writes = form == "prompt" and model.config.is_encoder_decoder
    args = training_arguments(recipe, quiet=True, writes=writes)
    kind = "encoder_decoder" if model.config.is_encoder_decoder else "decoder"
    prepared = PreparedTraining(recipe, model.config, kind, tokenizer, Plan(None), rows, None)
    make = trainer_class(prepared, args, None)
    dataset = Dataset.from_list([features(form, name, number) for number in range(rows_count)])
    pad = collator(form, tokenizer, model)
    if recipe.packing:
        dataset, pad = pack(dataset, 20), PackedCollator(0)
    trainer = make_trainer(model, args, (dataset, dataset), pad, [], make)
    trainer.train()
    return trainer


slow = pytest.mark.slow


def logged(trainer, key):
    return torch.tensor([e[key] for e in trainer.state.log_history if key in e]).double()


@pytest.mark.parametrize(
    ("form", "name", "settings"),
    [
        pytest.param(*case, id=" ".join((*case[:2], *case[2])), marks=[slow] * (case in ALIKE))
        for case in CASES
    ],
)
def test_batches_that_are_added_up_are_one_large_batch(form, name, settings, tmp_path):
    one, several = (
        trained(form, name, settings, tmp_path, batch, steps) for batch, steps in ((4, 1), (2, 2))
    )
    assert several.state.global_step == one.state.global_step >= 2
    before = dict(built(form, name).named_parameters())
    moved = 0.0
    for key, expected in one.model.named_parameters():
        assert_close(several.model.state_dict()[key].float(), expected.detach().float())
        moved = max(moved, float((expected - before[key]).detach().abs().max()))
    assert moved > 1e-3  # or no gradient was compared
    for key in ("loss", "grad_norm", "eval_loss"):
        found, expected = logged(several, key).float(), logged(one, key).float()
        assert len(expected) >= 1
        assert_close(found, expected)


@pytest.mark.parametrize(
    ("form", "name", "settings"),
    [
        ("prompt", "adapted llama", ()),
        ("prompt", "adapted llama", ("gradient_checkpointing=true",)),
        ("prompt", "adapted llama", ("packing=true",)),
        ("text", "adapted gpt2", ()),
        ("prompt", "llama", ()),
    ],
    ids=str,
)
def test_logits_only_where_labels_count_train_the_weights_that_all_logits_train(
    form, name, settings, tmp_path, monkeypatch
):
    sparing = trained(form, name, settings, tmp_path, 2, 2)
    assert sparing._labelled_loss is not None
    monkeypatch.setattr(f"{RunTrainer.__module__}.find_labelled_loss", lambda model, inputs: None)
    plain = trained(form, name, settings, tmp_path, 2, 2)
    assert plain._labelled_loss is None
    for key, expected in plain.model.named_parameters():
        assert_close(sparing.model.state_dict()[key], expected.detach())
    for key in ("loss", "grad_norm", "eval_loss"):
        assert_close(logged(sparing, key), logged(plain, key))


@pytest.mark.parametrize(
    ("form", "name"),
    [("label", "bert"), ("score", "llama"), ("text", "gpt2"), ("text", "llama"), ("prompt", "t5")],
    ids=" ".join,
)
def test_the_loss_of_a_step_is_the_mean_over_what_counts_in_its_rows(form, name, tmp_path):
    model, total, count = built(form, name), 0.0, 0
    pad = collator(form, byte_tokenizer(), model)
    for number in range(7):
        batch = pad([features(form, name, number)])
        labels = batch["labels"][:, 1:] if form == "text" else batch["labels"]
        own = int((labels != IGNORED).sum())
        total += model(**batch).loss.item() * own
        count += own
    trainer = trained(form, name, (), tmp_path, 7, 1)
    assert_close(logged(trainer, "loss")[0].float(), torch.tensor(total / count))


def test_devices_that_share_a_batch_weigh_by_what_counts_in_their_rows(tmp_path, monkeypatch):
    """Of three rows the first device gets two; each gives a mean of its own."""
    trainer = trained("prompt", "llama", (), tmp_path, 4, 1)
    labels = torch.full((3, 6), IGNORED)
    labels[0, 3:], labels[1, 5:], labels[2, 4:] = 7, 7, 7  # 3 + 1, and 2
    means = torch.tensor([1.0, 3.0])
    monkeypatch.setattr(trainer, "batch_loss", lambda model, inputs: (means, None))
    loss = trainer.compute_loss(trainer.model, {"labels": labels})
    assert_close(loss, torch.tensor((4 * 1.0 + 2 * 3.0) / 6))
    share = trainer.compute_loss(
        trainer.model, {"labels": labels}, num_items_in_batch=torch.tensor(24)
    )
    assert_close(share, loss / 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "name"),
    [("label", "adapted bert"), ("prompt", "bart"), ("prompt", "adapted llama")],
)
def test_two_processes_that_add_batches_up_are_one_large_batch(form, name, tmp_path):
    """Each has other numbers of tokens in its rows; gradients are averaged over processes."""
    one = trained(form, name, (), tmp_path / "one", 4, 1, 8)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", __file__, form, name, str(tmp_path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    several = torch.load(tmp_path / "two.pt")
    assert several["processes"] == 2
    for key in ("loss", "grad_norm", "eval_loss"):
        assert_close(several[key].float(), logged(one, key).float())
    for key, expected in one.model.named_parameters():
        assert_close(several["weights"][key].float(), expected.detach().float())


@in_double()
def main(form, name, folder):
    trainer = trained(form, name, (), Path(folder) / "two", 1, 2, 8)
    if trainer.is_world_process_zero():
        found = {key: logged(trainer, key) for key in ("loss", "grad_norm", "eval_loss")}
        weights = {key: weight.detach() for key, weight in trainer.model.named_parameters()}
        found |= {"weights": weights, "processes": trainer.args.world_size}
        torch.save(found, Path(folder) / "two.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
