"""The loss of a step as a mean over all its rows or tokens, however they were shared out.

The Trainer tells a model over how many labels a step goes, in all its processes and accumulated
batches, and expects the sum of its losses by that number. Many heads and encoder–decoders take the
number and return the mean over their own batch: two processes would then train with twice the loss.
"""

import inspect
from typing import Any

from torch import nn
from transformers import Trainer

from lorada.tasks.encode import IGNORED


def takes_count(model: nn.Module) -> bool:
    """Whether a transformers model divides the loss of a batch by the number that it is given."""
    # Those that do hand it on to the function of their loss.
    return "self.loss_function(" in inspect.getsource(inspect.unwrap(type(model).forward))


def average_over_all(trainer: Trainer, model: nn.Module) -> None:
    """Weigh each batch of a Trainer by its share of the labels, where its model does not.

    Args:
        trainer: the Trainer, whose ``compute_loss`` is replaced.
        model: the transformers model that it trains, without an adapter around it.
    """
    own = trainer.loss_is_scaled_for_ga is not None or trainer.label_smoother is not None
    if own or not trainer.model_accepts_loss_kwargs or takes_count(model):
        return
    if trainer.args.n_gpu > 1:  # one process with copies of the model, whose losses have one mean
        trainer.model_accepts_loss_kwargs = False
        return
    compute = trainer.compute_loss

    def weighted(
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        found = compute(model, inputs, return_outputs, num_items_in_batch)
        if num_items_in_batch is None:  # as for held-out rows
            return found
        labels = inputs["labels"][..., 1:] if trainer._loss_shifts_labels else inputs["labels"]
        share = labels.ne(IGNORED).sum() / num_items_in_batch
        return (found[0] * share, found[1]) if return_outputs else found * share

    trainer.compute_loss = weighted
