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
        needs_grad = ctx.needs_input_grad[0]
        losses: list[Tensor] = []
        state_grads: list[Tensor] = []
        for h, y in zip(states.split(chunk), targets.split(chunk), strict=True):
            with torch.set_grad_enabled(needs_grad):
                h = h.detach().requires_grad_(needs_grad)
                logits = head.forward(h).float()
                loss = F.cross_entropy(logits, y.to(logits.device), reduction="none")
            losses.append(loss.detach())
            if needs_grad:
                # Here and not in ``backward``, so that the logits of a chunk can be freed.
                state_grads += torch.autograd.grad(loss, h, torch.ones_like(loss))
        ctx.save_for_backward(torch.cat(state_grads) if needs_grad else None)
        return torch.cat(losses).to(states.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient for ``states``, made in ``forward``, times those of the losses (n,)."""
        (state_grads,) = ctx.saved_tensors
        return state_grads * loss_grads[:, None].to(state_grads.dtype), None, None, None


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
        rows, tokens = (labels != IGNORED).nonzero(as_tuple=True)
        targets = labels[rows, tokens]
        losses: Tensor | None = None

        def keep_labelled(_: nn.Module, head_inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            """The states that the head reads in place of all; none if their loss is made here."""
            nonlocal losses
            states, *others = head_inputs
            labelled_states = states[rows.to(states.device), tokens.to(states.device)]
            # Whether the head trains is seen by what it makes of no token: its weights may be
            # shared with another module, or be an adapter's.
            with torch.enable_grad():
                no_logits = head.forward(states[0, :0].detach())
            if no_logits.requires_grad or not self.plain:
                return labelled_states[None], *others
            vocabulary = no_logits.shape[-1]
            chunk = max(1, CHUNK_BYTES // (4 * vocabulary))
            losses = ChunkedLoss.apply(labelled_states, targets, head, chunk)
            return states[:1, :0], *others  # all its logits are used already

        with head.register_forward_pre_hook(keep_labelled):
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
    sample = _sample(inputs)
    was_training = model.training
    model.eval()  # no dropout: nothing random may happen here
    try:
        return _fitting_loss(model, sample)
    finally:
        model.train(was_training)


def _sample(inputs: dict[str, Any]) -> dict[str, Any]:
    """Cut a sample out of a batch: a stretch of one row, up to the last token that counts.

    It is of the row in which most tokens count, so that the sample has some.
    """
    counted = inputs["labels"][:, 1:] != IGNORED
    row = int(counted.sum(-1).argmax())
    stop = int(counted[row].nonzero().max()) + 2  # after the last label, whose column is one more
    part = slice(row, row + 1), slice(max(0, stop - SAMPLE), stop)
    sample = {}
    for name, value in inputs.items():
        sample[name] = value[part] if isinstance(value, Tensor) else value
    return sample


def _fitting_loss(model: Any, inputs: dict[str, Any]) -> LabelledLoss | None:
    """The loss for a model, if it agrees with the model's own on a batch of one row; else None."""
    head, labels = model.get_output_embeddings(), inputs["labels"]
    if head is None:
        return None
    head_outputs: list[Tensor] = []
    with head.register_forward_hook(lambda *call: head_outputs.append(call[-1].clone())):
        outputs = model(**inputs)
    if len(head_outputs) != 1:  # the head is called in pieces, or for something else too
        return None
    if not isinstance(outputs, dict) or outputs.get("loss") is None:
        return None
    if outputs["logits"].shape[:2] != labels.shape:  # virtual tokens have other shapes
        return None
    logits, own_loss = outputs["logits"].float(), outputs["loss"]
    # First that the model's loss is the mean over its logits, and nothing more.
    mean = F.cross_entropy(logits[0, :-1], labels[0, 1:].to(logits.device), ignore_index=IGNORED)
    size = max(1.0, mean.item())
    rounding = ROUNDING * torch.finfo(own_loss.dtype).eps * size
    if abs(mean.item() - own_loss.item()) > rounding:
        return None
    # Then that the model takes the labelled tokens alone, with the same loss.
    labelled_loss = LabelledLoss(model, plain=torch.equal(head_outputs[0].float(), logits))
    try:
        losses, _, _ = labelled_loss(model, inputs)
    except (RuntimeError, ValueError, IndexError):  # its forward wants all tokens
        return None
    is_near = abs(losses.mean().item() - own_loss.item()) <= NEAR * size
    return labelled_loss if is_near else None
