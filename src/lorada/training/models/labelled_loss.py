"""The loss of a decoder's batch, with logits only for tokens whose next token has a label.

    loss = 1/n Σ_t -log softmax(f(W h_t))[y_(t+1)]        over the n tokens t with a label y_(t+1)

h_t is what the model's body gives for token t, W its head, and f what the model does to logits
after it: most do nothing, some scale or cap them. The model's own forward is called without labels,
and a hook lets the head read only the h_t that count. If f is nothing and nothing in the head
trains, ``ChunkedLoss`` reads a chunk of them at a time, and keeps no logits. ``find_labelled_loss``
compares this with the model's own loss on a few tokens, and leaves the loss to the model where they
differ: where it adds a loss of its own.

Shapes: B rows, T tokens, n tokens that count, D width of the body, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorada.data.batches import IGNORED

CHUNK_BYTES = 2**25  # of the fp32 logits of a chunk
SAMPLE = 32  # tokens that are compared with the model's own loss
ROUNDING = 32  # times eps: two forms of one mean
NEAR = 0.05  # two losses from products of other shapes, in bf16 too; a wrong form is off by more


class ChunkedLoss(torch.autograd.Function):
    """The losses of n tokens; no logits are kept for their gradients."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, head: nn.Module, chunk: int) -> Tensor:
        """-log softmax(W h_t)[y_t] (n,), in fp32, ``chunk`` tokens at a time.

        The gradients for ``states``, h_t (n, D), are made here too; nothing in ``head``, W, trains.
        """
        wanted, losses, grads = ctx.needs_input_grad[0], [], []
        for piece, aims in zip(states.split(chunk), targets.split(chunk), strict=True):
            with torch.set_grad_enabled(wanted):
                piece = piece.detach().requires_grad_(wanted)
                logits = head.forward(piece).float()
                loss = F.cross_entropy(logits, aims.to(logits.device), reduction="none")
            losses.append(loss.detach())
            if wanted:
                grads += torch.autograd.grad(loss, piece, torch.ones_like(loss))
        ctx.save_for_backward(torch.cat(grads) if wanted else None)
        return torch.cat(losses).to(states.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient for ``states``, made in ``forward``, times those of the losses."""
        (grad,) = ctx.saved_tensors
        return grad * pull[:, None].to(grad.dtype), None, None, None


@dataclass(frozen=True)
class LabelledLoss:
    """The loss of batches of one model.

    Attributes:
        bare: the model without a wrapper for several processes.
        plain: whether f is nothing, so that a chunk of logits can be made without the model.
    """

    bare: Any
    plain: bool

    def __call__(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Any]:
        """The loss of each token with a label, (n,) row by row, the row of each, and the outputs.

        Args:
            model: ``bare``, or its wrapper.
            inputs: with ``labels`` (B, T).
        """
        head, labels = self.bare.get_output_embeddings(), inputs["labels"][:, 1:]
        # How many there are is read from the device once; with a mask, in the backward pass too.
        rows, places = (labels != IGNORED).nonzero(as_tuple=True)
        targets = labels[rows, places]
        losses: Tensor | None = None

        def take(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            """The states that the head reads in place of all."""
            nonlocal losses
            states = given[0]
            chosen = states[rows.to(states.device), places.to(states.device)]
            with torch.enable_grad():  # what trains may be shared with another module: ask for none
                nothing = head.forward(states[0, :0].detach())
            if nothing.requires_grad or not self.plain:
                return chosen[None], *given[1:]
            chunk = max(1, CHUNK_BYTES // (4 * nothing.shape[-1]))
            losses = ChunkedLoss.apply(chosen, targets, head, chunk)
            return states[:1, :0], *given[1:]  # all its logits are used already

        with head.register_forward_pre_hook(take):
            outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
        if losses is None:
            logits = outputs["logits"][0].float()
            losses = F.cross_entropy(logits, targets.to(logits.device), reduction="none")
        return losses, rows, outputs


@torch.no_grad()
def find_labelled_loss(model: nn.Module, inputs: dict[str, Any]) -> LabelledLoss | None:
    """The loss for a decoder without a wrapper, or None if it has to compute its loss itself.

    ``inputs`` are a batch with at least one label that counts; all its tensors are (B, T).
    """
    counted = inputs["labels"][:, 1:] != IGNORED
    row = int(counted.sum(-1).argmax())
    stop = int(counted[row].nonzero().max()) + 2
    part = slice(row, row + 1), slice(max(0, stop - SAMPLE), stop)
    training = model.training
    model.eval()  # no dropout: nothing random may happen here
    try:
        return _compared(
            model, {k: x[part] if isinstance(x, Tensor) else x for k, x in inputs.items()}
        )
    finally:
        model.train(training)


def _compared(model: Any, inputs: dict[str, Any]) -> LabelledLoss | None:
    """The loss for a model, if it agrees with the model's own."""
    head, labels = model.get_output_embeddings(), inputs["labels"]
    if head is None:
        return None
    raw: list[Tensor] = []  # logits as the head gives them
    with head.register_forward_hook(lambda *given: raw.append(given[-1].clone())):
        own = model(**inputs)
    known = len(raw) == 1 and isinstance(own, dict) and own.get("loss") is not None
    if not known or own["logits"].shape[:2] != labels.shape:  # virtual tokens have other shapes
        return None
    logits, expected = own["logits"].float(), own["loss"]
    loss = F.cross_entropy(logits[0, :-1], labels[0, 1:].to(logits.device), ignore_index=IGNORED)
    size = max(1.0, loss.item())
    if abs(loss.item() - expected.item()) > ROUNDING * torch.finfo(expected.dtype).eps * size:
        return None
    found = LabelledLoss(model, plain=torch.equal(raw[0].float(), logits))
    try:
        loss = found(model, inputs)[0].mean()
    except (RuntimeError, ValueError, IndexError):  # its forward wants all tokens
        return None
    return found if abs(loss.item() - expected.item()) <= NEAR * size else None
