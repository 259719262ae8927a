"""The layers of a model, which of them get gradients, and how some of them are drawn."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model by name: the members of every list that is not inside a layer."""
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not name.startswith(
            tuple(f"{k}." for k in layers)
        ):
            layers |= {f"{name}.{index}": layer for index, layer in enumerate(module)}
    return layers


def trained(model: nn.Module, kind: type, container: str) -> list[tuple[str, nn.Parameter]]:
    """The parameters that train in one container of all tuner layers of a kind, with adapters."""
    layers = [layer for layer in model.modules() if isinstance(layer, kind)]
    items = [item for layer in layers for item in getattr(layer, container).items()]
    return [(name, parameter) for name, parameter in items if parameter.requires_grad]


class Switch:
    """Which layers of a model get gradients.

    What is trainable when the switch is made is what it turns on and off; parameters outside the
    layers (embeddings, last norm, heads) are left alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = {
            name: layer
            for name, layer in layers_of(model).items()
            if any(p.requires_grad for p in layer.parameters())
        }
        self.parameters = [
            [p for p in layer.parameters() if p.requires_grad] for layer in self.layers.values()
        ]

    def only(self, active: Iterable[int]) -> None:
        """Give gradients to these layers and to no other."""
        for parameter in (p for layer in self.parameters for p in layer):
            parameter.requires_grad_(False)
        for index in active:
            for parameter in self.parameters[index]:
                parameter.requires_grad_(True)

    def all(self) -> None:
        """Give gradients to every layer again."""
        self.only(range(len(self.parameters)))


def generator_at(seed: int, step: int) -> torch.Generator:
    """A generator of its own for every step, so that a resumed run draws what it would have."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def draw(weights: torch.Tensor, count: int, generator: torch.Generator) -> list[int]:
    """``count`` different indices, drawn one after another with these weights."""
    return sorted(torch.multinomial(weights, count, generator=generator).tolist())


def training_rows(loader: Any, count: int, generator: torch.Generator, what: str) -> list[Any]:
    """Up to ``count`` random rows of the training set behind the Trainer's loader.

    Raises:
        ValueError: for a data set without random access.
    """
    dataset = loader.dataset
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{what} draws rows of the training set, which {type(dataset).__name__} cannot give "
            "by number: load the data without streaming"
        )
    chosen = torch.randperm(len(dataset), generator=generator)[:count].tolist()
    return [dataset[index] for index in chosen]


def collate(loader: Any, rows: Sequence[Any], device: torch.device) -> dict[str, Any]:
    """Rows as the Trainer's own batches, without a change to the global random stream.

    A collator whose batches a model cannot read alone has some that it can in ``plain``.
    """
    pad = getattr(loader.collate_fn, "plain", loader.collate_fn)
    with torch.random.fork_rng(devices=[]):  # a collator may draw, as one that masks tokens does
        batch = pad(rows)
    return {key: v.to(device) if hasattr(v, "to") else v for key, v in batch.items()}


def same_everywhere(measured: torch.Tensor) -> torch.Tensor:
    """The first process's numbers in every process: with other ones, draws would part ways."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast(measured, 0)
    return measured


def let_gradients_through(model: Any, args: TrainingArguments) -> None:
    """Make reentrant checkpoints keep the gradient of layers above the frozen ones."""
    if args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get(
        "use_reentrant"
    ):
        model.enable_input_require_grads()
