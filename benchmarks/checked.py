"""What is timed is checked first: on short batches it computes the same as the paper's own form.

The other side is the same method with the same parameters, its attention as in ``papers_form``.
"""

from typing import Any

import papers_form
import torch
from costs import TOLERANCE, DisagreementError, Options, text_batch
from sides import Batch, Side, bare_base, forward_backward, ours, part_of, take_over
from torch import Tensor

from lorada import LmamConfig

LONGEST, ROWS = 256, 2  # tokens, twice the length of the map, and samples of a check
DECODED = 8  # tokens

_agreed: set[tuple[Any, ...]] = set()


def papers_side(settings: Any, method: str, mine: Side, batch: Batch) -> Side:
    """The same method, its attention in the paper's form."""
    side = ours(method, papers_form.use(bare_base(settings.model)), batch)
    return take_over(side, mine)


def check_steps(
    settings: Any, method: str, mine: Side, batch: Batch, other: Side | None = None
) -> None:
    """Loss and gradients on the start of a batch of this shape, without pads and with them.

    Once for each shape, unless the other side is given, which is then to be timed itself.

    Raises:
        DisagreementError: naming the first difference.
    """
    rows, length = batch["input_ids"][:ROWS, :LONGEST].shape
    key = settings, method, *batch, rows, length
    if other is None and key in _agreed:
        return
    options = Options(settings.model, settings.data, length=length)
    plain = text_batch(options, rows)
    if other is None:
        other = papers_side(settings, method, mine, plain)
    compare(mine, other, {name: plain[name] for name in batch} | {"labels": plain["labels"]})
    compare(mine, other, text_batch(options, ROWS, padded=True))
    _agreed.add(key)


def compare(mine: Side, other: Side, batch: Batch) -> None:
    """Both give the same loss and gradients."""
    found: list[tuple[Tensor, dict[str, Tensor | None]]] = []
    for side in (mine, other):
        side.model.eval()  # no dropout, which draws in another order
        loss = forward_backward(side, batch, 0)
        found.append((loss, side.found()))
        for parameter in side.parameters.values():
            parameter.grad = None
        side.model.train()
    (loss, gradients), (wanted, right) = found
    if not (loss - wanted).abs() <= TOLERANCE * wanted.abs():
        raise DisagreementError(f"the loss is {loss:.7g}, not {wanted:.7g}")
    for name, gradient in right.items():
        agree(f"the gradient of {name}", gradients[name], gradient)


def agree(what: str, found: Tensor | None, wanted: Tensor | None) -> None:
    """Two tensors differ by rounding only.

    Raises:
        DisagreementError: if they differ by more, or if one is missing.
    """
    if found is None or wanted is None:
        raise DisagreementError(f"{what} is missing on one side")
    error, size = float((found - wanted).norm()), float(wanted.norm())
    if not error <= 10 * TOLERANCE * size:
        raise DisagreementError(f"{what} is {error:.2g} of {size:.2g} off")


@torch.no_grad()
def check_decoding(settings: Any, method: str, mine: Side) -> None:
    """Logits of tokens decoded over the map's end, and beyond it, against a whole forward.

    Raises:
        DisagreementError: if they differ.
    """
    end = part_of(mine, LmamConfig).length
    options = Options(settings.model, settings.data, length=end + DECODED)
    text = text_batch(options, 1)
    other = papers_side(settings, method, mine, text)
    model: Any = mine.model.eval()
    other.model.eval()
    for prompt in (end - DECODED // 2, end + DECODED):
        asked = {name: text[name][:, :prompt] for name in ("input_ids", "attention_mask")}
        found = model.generate(
            **asked, min_new_tokens=DECODED, max_new_tokens=DECODED, do_sample=False,
            use_cache=True, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        logits = other.model(input_ids=found.sequences[:, :-1], use_cache=False).logits
        what = f"the logits of tokens decoded after {prompt}"
        agree(what, torch.stack(found.logits, 1), logits[:, prompt - 1 :])
