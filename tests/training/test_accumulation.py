"""k batches of b rows are one batch of k·b rows: losses, gradients, weights, held-out losses."""

from functools import partial

import pytest
import torch
from architectures import ARCHITECTURES
from conftest import VOCAB, assert_close
from datasets import Dataset
from folders import byte_tokenizer
from peft import get_peft_model
from stacks import randomise
from transformers import AutoModelForSequenceClassification

from lorada import LmamConfig, LoradaConfig
from lorada.data.batches import IGNORED, collator
from lorada.data.rows.rows import Rows
from lorada.data.tasks import TASKS
from lorada.methods.build import Plan
from lorada.support.row_sources import HEADED
from lorada.support.task_head import head_for
from lorada.training.arguments import training_arguments
from lorada.training.inputs import PreparedTraining
from lorada.training.load_recipe import load_recipe
from lorada.training.packing import pack, packed_batch
from lorada.training.setup import trainer_class

ENCODER_DECODERS = ("bart", "mbart", "t5")
# Form of rows, architecture, settings: every way that a loss comes about.
SMOOTH = ("label_smoothing_factor=0.1",)
pytestmark = pytest.mark.fp64

CASES = [
    *(("label", name, ()) for name in ("bert", "t5", "llama")),
    *(("score", name, ()) for name in ("bert", "gpt2")),
    *(("labels", name, ()) for name in ("bert", "llama")),
    ("choice", "adapted llama", ()),
    *((form, name, ()) for form, name in (("prompt", "llama"), ("text", "gpt2"))),
    *(("prompt", name, ()) for name in ("bart", "t5", "adapted bart", "adapted llama")),
    *((form, name, SMOOTH) for form, name in
      (("prompt", "bart"), ("prompt", "llama"), ("label", "bert"))),
    ("prompt", "llama", ("packing=true",)),
]  # fmt: skip


def ids(length, start=0):
    return [5 + (start * 7 + i * 3) % (VOCAB - 10) for i in range(length)]


def features(form, name, number):
    """A row of ids whose length, and whose number of counted tokens, is its own."""
    text = ids(4 + 3 * (number % 4), number)
    if form in HEADED:
        learned = {"label": number % 3, "labels": [1.0, 0.0, float(number % 2)]}
        label = learned.get(form, 0.3 * number - 1)
        return {"input_ids": [*text, 2], "attention_mask": [1] * (len(text) + 1), "labels": label}
    answer = [*ids(1 + number % 3, number + 1), 2]
    if form == "choice":
        candidates = [answer, ids(2, number)]
        lengths = [len(one) for one in candidates]
        row = {"prompt": text, "candidates": candidates, "answer": number % 2}
        return {**row, "divisors": lengths}
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
    if form in HEADED:
        head = head_for(form, ("a", "b", "c"))
        model.config.num_labels, model.config.problem_type = head.outputs, head.problem
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


def trained(form, name, settings, tmp_path, batch, steps):
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
    args = training_arguments(recipe, quiet=True)
    kind = "encoder_decoder" if model.config.is_encoder_decoder else "decoder"
    prepared = PreparedTraining(recipe, model.config, kind, tokenizer, Plan(None), rows, None, None)
    make = trainer_class(prepared, args)
    dataset = Dataset.from_list([features(form, name, number) for number in range(7)])
    pad = collator(form, tokenizer, model)
    if recipe.packing:
        dataset, pad = pack(dataset, 20), partial(packed_batch, pad=0)
    trainer = make(model, args, pad, dataset, dataset)
    trainer.train()
    return trainer


def logged(trainer, key):
    return torch.tensor([e[key] for e in trainer.state.log_history if key in e]).double()


@pytest.mark.parametrize(("form", "name", "settings"), CASES, ids=str)
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


@pytest.mark.parametrize("name", ["bart", "llama"])
def test_smoothed_labels_take_their_share_of_every_token(name, tmp_path):
    model = built("prompt", name)
    pad = collator("prompt", byte_tokenizer(), model)
    batch = pad([features("prompt", name, number) for number in range(7)])
    ahead = 0 if name == "bart" else 1  # a decoder's logits are of the next token
    labels = batch["labels"][:, ahead:]
    log_p = model(**batch).logits[:, : labels.shape[1]].log_softmax(-1)
    right = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = -(0.9 * right + 0.1 * log_p.mean(-1))[labels != IGNORED].mean()
    trainer = trained("prompt", name, SMOOTH, tmp_path, 7, 1)
    assert_close(logged(trainer, "loss")[0].float(), expected.detach().float())
