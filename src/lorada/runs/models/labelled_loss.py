"""The loss of a decoder's batch, with logits only for tokens whose next token has a label.

    loss = 1/n Σ_t -log softmax(f(W h_t))[y_(t+1)]        over the n tokens t with a label y_(t+1)

h_t is what the model's body gives for token t, W its head, and f what the model does to logits
after it: most do nothing, some scale or cap them. Logits are the largest tensors of a training
step, and where only responses are learned, most of them are not needed.

The model's own forward is called without labels, and a hook lets the head read only the h_t that
count. If f is nothing and nothing in the head trains, ``ChunkedLoss`` reads a chunk of them at a
time, and keeps no logits. ``find_labelled_loss`` compares all this with the model's own loss on a
few tokens, and leaves the loss to the model where they differ: where it adds a loss of its own.

Shapes: B rows, T tokens, n tokens that count, D width of the body, V vocabulary.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorada.tasks.tokenize import IGNORED

logger = logging.getLogger(__name__)

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
                loss = _cross_entropy(head.forward(piece), aims)
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


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each token, (n,), in fp32; the targets may be on another device."""
    return F.cross_entropy(logits.float(), targets.to(logits.device), reduction="none")


def _head(model: Any) -> nn.Module | None:
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    head: nn.Module | None = inner.get_output_embeddings()
    return head


@dataclass(frozen=True)
class LabelledLoss:
    """The loss of batches of one model.

    Attributes:
        bare: the model without a wrapper for several processes.
        plain: whether f is nothing, so that a chunk of logits can be made without the model.
    """

    bare: nn.Module
    plain: bool

    def __call__(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The mean loss of a batch, and the model's outputs, without the logits of most tokens.

        Args:
            model: ``bare``, or its wrapper.
            inputs: with ``labels`` (B, T).
        """
        losses, _, outputs = self.each(model, inputs)
        return losses.mean(), outputs

    def each(
        self, model: nn.Module, inputs: dict[str, Any], where: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Any]:
        """The loss of each token with a label, (n,) row by row, the row of each, and the outputs.

        Args:
            model: ``bare``, or its wrapper.
            inputs: with ``labels`` (B, T).
            where: rows and places, (n,) each, of the tokens h_t; None to read them from the labels.
        """
        head = _head(self.bare)
        assert head is not None  # find_labelled_loss has looked
        labels = inputs["labels"][:, 1:]
        # Their number is a size, which is read from the device. With a mask it would be read here,
        # for the states and in the backward pass; with their places it is read once.
        rows, places = where or (labels != IGNORED).nonzero(as_tuple=True)
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

        handle = head.register_forward_pre_hook(take)
        try:
            outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
        finally:
            handle.remove()
        if losses is None:
            losses = _cross_entropy(outputs["logits"][0], targets)
        return losses, rows, outputs


def find_labelled_loss(model: nn.Module, inputs: dict[str, Any]) -> LabelledLoss | None:
    """The loss for a model, or None if the model has to compute its loss itself.

    Args:
        model: a decoder without a wrapper for several processes.
        inputs: a batch, with at least one label that counts.
    """
    training = model.training
    model.eval()  # no dropout: nothing random may happen here
    try:
        with torch.no_grad():
            found = _compared(model, _sample(inputs))
    finally:
        model.train(training)
    if found is None:
        logger.info("%s computes its loss itself, with all logits", type(model).__name__)
    return found


def _sample(inputs: dict[str, Any]) -> dict[str, Any]:
    """The end of the row with the most labels; all tensors are (B, T)."""
    counted = inputs["labels"][:, 1:] != IGNORED
    row = int(counted.sum(-1).argmax())
    stop = int(counted[row].nonzero().max()) + 2
    part = slice(row, row + 1), slice(max(0, stop - SAMPLE), stop)
    return {key: x[part] if isinstance(x, Tensor) else x for key, x in inputs.items()}


def _compared(model: nn.Module, inputs: dict[str, Any]) -> LabelledLoss | None:
    """The loss for a model, if it agrees with the model's own."""
    head, labels = _head(model), inputs["labels"]
    if head is None:
        return None
    raw: list[Tensor] = []  # logits as the head gives them
    handle = head.register_forward_hook(lambda *given: raw.append(given[-1].clone()))
    try:
        own = model(**inputs)
    finally:
        handle.remove()
    if len(raw) != 1 or not isinstance(own, dict) or own.get("loss") is None:
        return None
    logits, expected = own["logits"].float(), own["loss"]
    if logits.shape[:2] != labels.shape:  # virtual tokens, for one
        return None
    loss = F.cross_entropy(logits[0, :-1], labels[0, 1:].to(logits.device), ignore_index=IGNORED)
    size = max(1.0, loss.item())
    if abs(loss.item() - expected.item()) > ROUNDING * torch.finfo(expected.dtype).eps * size:
        return None
    found = LabelledLoss(model, plain=torch.equal(raw[0].float(), logits))
    try:
        loss, _ = found(model, inputs)
    except (RuntimeError, ValueError, IndexError) as error:  # its forward wants all tokens
        logger.debug("with the states of some tokens only: %s", error)
        return None
    return found if abs(loss.item() - expected.item()) <= NEAR * size else None
