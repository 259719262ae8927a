"""The loss of a decoder's batch, with logits only for tokens whose next token has a label.

    loss = 1/n Σ_t -log softmax(f(W h_t))[y_(t+1)]        over the n tokens t with a label y_(t+1)

h_t is what the model's body gives for token t, W its head, and f what the model does to logits
after it: some scale them, some cap them. Logits are the largest tensors of a training step, and
where only responses are learned, most of them are not needed.

The model's own forward is called without labels. A hook on the head takes the h_t that count out of
it. If nothing in the head trains, ``ChunkedLoss`` makes the loss and its gradient for h_t from a
chunk of them at a time. Else the head, and all that the model does after it, gets only these h_t.

``find_labelled_loss`` compares all this with the model's own loss on a few tokens, and leaves the
loss to the model where they differ: where it adds a loss of its own, such as that of a router.

Shapes: B rows, T tokens, n tokens that count, D width of the body, V vocabulary.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PretrainedConfig

from lorada.tasks.tokenize import IGNORED

logger = logging.getLogger(__name__)

CHUNK_BYTES = 2**25  # of the fp32 logits of a chunk, whose gradient takes their place
SAMPLE = 32  # tokens that are compared with the model's own loss
# By these names configs say what logits are multiplied by, or divided by: the same name means
# one in Granite and the other in HyperCLOVA.
SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
CAP = "final_logit_softcapping"
ROUNDING = 32  # times eps: two forms of one product by the head, or of one mean
NEAR = 0.05  # two losses from products of other shapes, in bf16 too; a wrong form is off by more


@dataclass(frozen=True)
class AfterHead:
    """f: logits are multiplied by ``scale``, then kept between ``-cap`` and ``cap`` by a tanh."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """f(logits), in their dtype."""
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


class ChunkedLoss(torch.autograd.Function):
    """The sum of the losses of n tokens; no logits are kept for its gradient."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, targets: Tensor, head: nn.Module, f: AfterHead, chunk: int
    ) -> Tensor:
        """Σ_t -log softmax(f(W h_t))[y_t], in fp32.

        Args:
            ctx: of autograd.
            states: (n, D), h_t.
            targets: (n,), y_t.
            head: W, in which nothing trains.
            f: what is done to logits.
            chunk: how many tokens have logits at a time.
        """
        wanted = ctx.needs_input_grad[0]
        grads, total = [], torch.zeros((), device=states.device)
        for piece, aims in zip(states.split(chunk), targets.split(chunk), strict=True):
            piece = piece.detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                logits = f(head.forward(piece)).float()
            losses = _into_gradient(logits.detach(), aims.to(logits.device))
            if wanted:
                grads += torch.autograd.grad(logits, piece, logits.detach())
            total += losses.sum().to(total.device)
        ctx.save_for_backward(torch.cat(grads) if wanted else None)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient for ``states``, made in ``forward``, times that of the loss."""
        (grad,) = ctx.saved_tensors
        return grad * pull.to(grad.dtype), None, None, None, None


def _into_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(z)[y] (n,) for logits z (n, V), which become softmax(z) - onehot(y) in place."""
    places = targets[:, None]
    largest = logits.amax(-1, keepdim=True)
    aimed = logits.gather(-1, places) - largest
    sums = logits.sub_(largest).exp_().sum(-1, keepdim=True)
    logits.div_(sums).scatter_add_(-1, places, torch.full_like(aimed, -1))
    return (sums.log() - aimed)[:, 0]


@contextmanager
def _before(head: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The head gets ``change`` of what the model gives it."""
    handle = head.register_forward_pre_hook(lambda _, given: (change(given[0]), *given[1:]))
    try:
        yield
    finally:
        handle.remove()


def _head(model: Any) -> nn.Module | None:
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    head: nn.Module | None = inner.get_output_embeddings()
    return head


def _chunk(head: nn.Module, states: Tensor) -> int:
    """How many tokens have logits at a time; 0 if anything in the head trains.

    That may be something that it shares with another module, so it is asked for the logits of no
    token.
    """
    with torch.enable_grad():
        logits: Tensor = head.forward(states[0, :0].detach())
    return 0 if logits.requires_grad else max(1, CHUNK_BYTES // (4 * logits.shape[-1]))


@dataclass(frozen=True)
class LabelledLoss:
    """The loss of batches of one model.

    Attributes:
        bare: the model without a wrapper for several processes.
        after_head: f; None if it is not known, so that the model has to make all logits itself.
    """

    bare: nn.Module
    after_head: AfterHead | None

    def __call__(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The mean loss of a batch, and the model's outputs, without the logits of most tokens.

        Args:
            model: ``bare``, or its wrapper.
            inputs: with ``labels`` (B, T).
        """
        labels = inputs["labels"][:, 1:]
        # Their number is a size, which is read from the device. With a mask it would be read here,
        # for the states and in the backward pass; with their places it is read once.
        rows, places = (labels != IGNORED).nonzero(as_tuple=True)
        given = {key: value for key, value in inputs.items() if key != "labels"}
        return self.of(
            model, given, lambda h: h[rows.to(h.device), places.to(h.device)], labels[rows, places]
        )

    def each(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The loss of each token with a label in a batch, without gradients.

        Args:
            inputs: with ``labels`` (B, T).

        Returns:
            (n,) in fp32, row by row, and (n,) the row of each.
        """
        labels = inputs["labels"][:, 1:]
        rows, places = (labels != IGNORED).nonzero(as_tuple=True)
        targets, losses = labels[rows, places], []
        head, f = _head(self.bare), self.after_head
        assert head is not None  # find_labelled_loss has looked

        def take(states: Tensor) -> Tensor:
            chosen = states[rows, places]
            if f is None or not (chunk := _chunk(head, states)):
                return chosen[None]
            for piece, aims in zip(chosen.split(chunk), targets.split(chunk), strict=True):
                logits = f(head.forward(piece)).float()
                losses.append(F.cross_entropy(logits, aims, reduction="none"))
            return states[:1, :0]  # all its logits are used already

        with _before(head, take), torch.no_grad():
            outputs = self.bare(**{k: v for k, v in inputs.items() if k != "labels"})
        if not losses:
            logits = outputs["logits"][0].float()
            losses = [F.cross_entropy(logits, targets, reduction="none")]
        return torch.cat(losses), rows

    def of(
        self,
        model: nn.Module,
        given: dict[str, Any],
        choose: Callable[[Tensor], Tensor],
        targets: Tensor,
    ) -> tuple[Tensor, Any]:
        """The mean loss of tokens, and the model's outputs.

        Args:
            model: ``bare``, or its wrapper.
            given: to the model, without labels.
            choose: takes h_t, (n, D), out of what the head would get, (B, T, D).
            targets: y_(t+1), (n,).
        """
        head = _head(self.bare)
        assert head is not None  # find_labelled_loss has looked
        total: Tensor | None = None

        def take(states: Tensor) -> Tensor:
            nonlocal total
            chosen = choose(states)
            chunk = 0 if self.after_head is None else _chunk(head, states)
            if not chunk:
                return chosen[None]
            total = ChunkedLoss.apply(chosen, targets, head, self.after_head, chunk)
            return states[:1, :0]  # all its logits are used already

        with _before(head, take):
            outputs = model(**given)
        if total is None:
            logits = outputs["logits"][0].float()
            return F.cross_entropy(logits, targets.to(logits.device)), outputs
        return total / len(targets), outputs


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
    start = max(0, stop - SAMPLE)
    return {
        key: value[row : row + 1, start:stop] if isinstance(value, Tensor) else value
        for key, value in inputs.items()
    }


def _compared(model: nn.Module, inputs: dict[str, Any]) -> LabelledLoss | None:
    """The form of the loss that agrees with the model's own, if one does."""
    head = _head(model)
    if head is None:
        return None
    raw: list[Tensor] = []  # logits as the head gives them

    def look(states: Tensor) -> Tensor:
        raw.append(head.forward(states))
        return states

    with _before(head, look):
        own = model(**inputs)
    labels = inputs["labels"]
    if len(raw) != 1 or not isinstance(own, dict) or own.get("loss") is None:
        return None
    if own["logits"].shape[:2] != labels.shape:  # virtual tokens, for one
        return None
    logits, expected = own["logits"].float(), own["loss"]
    loss = F.cross_entropy(logits[0, :-1], labels[0, 1:].to(logits.device), ignore_index=IGNORED)
    size = max(1.0, loss.item())
    if abs(loss.item() - expected.item()) > ROUNDING * torch.finfo(expected.dtype).eps * size:
        return None
    found = LabelledLoss(model, _after_head(raw[0], logits, model.config))
    try:
        loss, _ = found(model, inputs)
    except (RuntimeError, ValueError, IndexError) as error:  # its forward wants all tokens
        logger.debug("with the states of some tokens only: %s", error)
        return None
    return found if abs(loss.item() - expected.item()) <= NEAR * size else None


def _after_head(raw: Tensor, logits: Tensor, config: PretrainedConfig) -> AfterHead | None:
    """f, from what the config says, if it makes ``logits`` from ``raw``."""
    if raw.shape != logits.shape:
        return None
    config = config.get_text_config()
    cap = getattr(config, CAP, None)
    scales = [float(scale) for name in SCALES if (scale := getattr(config, name, None))]
    allowed = ROUNDING * torch.finfo(raw.dtype).eps * float(logits.abs().max())
    for scale in (1.0, *scales, *(1 / scale for scale in scales)):
        f = AfterHead(scale, cap)
        if float((f(raw).float() - logits).abs().max()) <= allowed:
            return f
    return None
