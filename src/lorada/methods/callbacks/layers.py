"""The layers of a model, callbacks that train some of them at a time, and what these draw."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model by name: the members of every list that is not inside a layer."""
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = name.startswith(tuple(f"{layer}." for layer in layers))
        if isinstance(module, nn.ModuleList) and not inside:
            layers |= {f"{name}.{index}": layer for index, layer in enumerate(module)}
    return layers


class LayerCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Base of the callbacks that train some layers of a model at a time.

    Parameters outside the layers (embeddings, last norm, heads) are left alone.
    """

    # The attribute whose value a run that is resumed takes from its checkpoint.
    kept_attribute: ClassVar[str]
    _parameters: Sequence[list[nn.Parameter]] = ()  # those that train, of each layer

    def trained_layers(self, model: nn.Module, args: TrainingArguments) -> dict[str, nn.Module]:
        """The layers with parameters that train, by name, at the start of a training."""
        self.train_all()  # a training that ended in an error has left some off
        kwargs = args.gradient_checkpointing_kwargs or {}
        if args.gradient_checkpointing and kwargs.get("use_reentrant"):
            # Otherwise reentrant checkpoints drop the gradients of layers above frozen ones.
            model.enable_input_require_grads()  # type: ignore[operator]
        layers = {}
        parameters_by_layer = []
        for name, layer in layers_of(model).items():
            trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
            if trained:
                layers[name] = layer
                parameters_by_layer.append(trained)
        self._parameters = parameters_by_layer
        return layers

    def train_only(self, active: Iterable[int]) -> None:
        """Give gradients to the layers with these indices and to no other."""
        active_indices = set(active)
        for index, parameters in enumerate(self._parameters):
            for parameter in parameters:
                parameter.requires_grad_(index in active_indices)

    def train_all(self) -> None:
        """Give gradients to every layer again."""
        self.train_only(range(len(self._parameters)))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        public = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"args": {}, "attributes": public}

    def resumed(self, state: TrainerState) -> Any:
        """What the checkpoint that a run resumes from has kept; None for a new run."""
        saved = (state.stateful_callbacks or {}).get(type(self).__name__)
        if state.global_step == 0 or not isinstance(saved, dict):
            return None
        return saved["attributes"][self.kept_attribute]

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make every layer trainable again."""
        self.train_all()


def generator_at(seed: int, step: int) -> torch.Generator:
    """A random generator for one step, so that a resumed run draws what an uninterrupted does."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def draw(weights: torch.Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Draw ``count`` different indices, one after another with these weights."""
    return sorted(torch.multinomial(weights, count, generator=generator).tolist())


def training_batches(
    loader: Any, count: int, size: int, generator: torch.Generator, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Draw up to ``count`` rows of a Trainer's ``train_dataloader``, in batches of ``size``.

    The global random generator is left alone. A collator for a special trainer has an attribute
    ``plain``: a collator for the model alone.
    """
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"layers are weighed on rows drawn from the training set, and {type(dataset).__name__} "
            "is a stream: load it whole"
        )
    collate = getattr(loader.collate_fn, "plain", loader.collate_fn)
    drawn = torch.randperm(len(dataset), generator=generator)[:count]
    for indices in drawn.split(size):
        rows = [dataset[index] for index in indices.tolist()]
        with torch.random.fork_rng(devices=[]):  # a collator may draw, as one that masks tokens
            batch = collate(rows)
        # Not every entry need be a tensor: a collator may pass texts on.
        yield {
            key: value.to(device) if hasattr(value, "to") else value for key, value in batch.items()
        }


def same_everywhere(measured: torch.Tensor) -> torch.Tensor:
    """Give every process the numbers of the first, so that all draw the same layers."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast(measured, 0)
    return measured
