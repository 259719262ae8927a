"""Checks of a model with a map against the paper's own form of attention, on short batches.

Nothing is timed before it passes. The other model has the same method with the same parameters,
and computes its attention as ``paper_attention.py`` does.
"""

from typing import Any

import torch
from library import paper_attention
from library.agreement import check_loss_and_gradients, check_tensor
from library.training_setup import (
    Batch,
    TrainingSetup,
    bare_model,
    copy_parameters,
    lorada_setup,
    text_batch,
)

from lorada import LmamConfig

# Of a check: twice as many tokens as the map has, and how many samples.
LONGEST, ROWS = 256, 2
DECODED = 8  # tokens

_checked: set[tuple[Any, ...]] = set()


def paper_setup(model: str, method: str, ours: TrainingSetup, batch: Batch) -> TrainingSetup:
    """The same method with the same parameters, its attention in the paper's form."""
    base = paper_attention.use_paper_attention(bare_model(model))
    return copy_parameters(lorada_setup(method, base, batch), ours)


def check_training(
    settings: Any,
    method: str,
    ours: TrainingSetup,
    batch: Batch,
    reference: TrainingSetup | None = None,
) -> None:
    """Check loss and gradients on batches like the start of this one, without pads and with them.

    Args:
        settings: has ``model`` and ``data``.
        method: what ``ours`` was made from.
        ours: the setup to check.
        batch: the batch that will be timed.
        reference: a setup in the paper's form that will be timed itself. If there is none, one is
            made, and each shape of batch is checked once.

    Raises:
        DisagreementError: naming the first difference.
    """
    rows, length = batch["input_ids"][:ROWS, :LONGEST].shape
    key = settings, method, *batch, rows, length
    if reference is None and key in _checked:
        return
    plain = text_batch(settings.model, settings.data, rows, length)
    padded = text_batch(settings.model, settings.data, ROWS, length, padded=True)
    if reference is None:
        reference = paper_setup(settings.model, method, ours, plain)
    same_inputs = {name: plain[name] for name in batch} | {"labels": plain["labels"]}
    for inputs in (same_inputs, padded):
        compare(ours, reference, inputs)
    _checked.add(key)


def compare(ours: TrainingSetup, reference: TrainingSetup, batch: Batch) -> None:
    """Check loss and gradients of a batch, and drop the gradients."""
    for setup in (ours, reference):
        setup.model.eval()  # no dropout, which the two would draw in another order
    check_loss_and_gradients(ours, reference, batch)
    for setup in (ours, reference):
        for parameter in setup.parameters.values():
            parameter.grad = None
        setup.model.train()


@torch.no_grad()
def check_decoding(settings: Any, method: str, ours: TrainingSetup) -> None:
    """Check the logits of tokens decoded across and beyond the map's end.

    They must be those of one forward pass over the whole text in the paper's form.

    Raises:
        DisagreementError: if they differ.
    """
    assert ours.plan is not None
    stack: Any = ours.plan.config
    end = next(part.length for part in stack.parts if isinstance(part, LmamConfig))
    text = text_batch(settings.model, settings.data, 1, end + DECODED)
    reference = paper_setup(settings.model, method, ours, text)
    model: Any = ours.model.eval()
    reference.model.eval()
    for prompt in (end - DECODED // 2, end + DECODED):
        inputs = {name: text[name][:, :prompt] for name in ("input_ids", "attention_mask")}
        found = model.generate(
            **inputs, min_new_tokens=DECODED, max_new_tokens=DECODED, do_sample=False,
            use_cache=True, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        logits = reference.model(input_ids=found.sequences[:, :-1], use_cache=False).logits
        what = f"the logits of tokens decoded after {prompt}"
        check_tensor(what, torch.stack(found.logits, 1), logits[:, prompt - 1 :])
