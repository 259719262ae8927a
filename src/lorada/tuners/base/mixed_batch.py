"""Batches in which each sample has an adapter of its own (PEFT's ``adapter_names``)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

# Arguments of a model that hold one entry for each sample.
INPUTS = ("input_ids", "inputs", "inputs_embeds", "input_features", "pixel_values")


@contextmanager
def mixed_batch(
    tuner: BaseTuner,
    names: list[str] | None,
    *args: Any,
    **kwargs: Any,
) -> Iterator[None]:
    """Serve each sample of a batch by its own adapter, as PEFT's ``adapter_names`` asks.

    Raises:
        ValueError: in training mode, as in PEFT; for a name that is not loaded; for another number
            of names than of samples.
    """
    if names is None:
        yield
        return
    if tuner.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
    if unknown := set(names) - {"__base__", *tuner.peft_config}:
        raise ValueError(
            f"adapter_names has {min(unknown)!r}; loaded are {', '.join(sorted(tuner.peft_config))}"
        )
    hooks = [(module, set(module._forward_pre_hooks)) for module in tuner.model.modules()]
    with ExitStack() as stack:
        stack.push(lambda kind, *_: forget_hooks(hooks) if kind else None)
        # `generate` shows its inputs here, before it repeats them for its beams; the forward of a
        # task's model does not, but the model that it calls gets them as they are.
        if not _fits(names, args, kwargs):

            def check(module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
                _fits(names, inputs, named)

            hook = tuner.model.register_forward_pre_hook(check, with_kwargs=True)
            stack.callback(hook.remove)
        for layer in tuner.model.modules():
            if hasattr(layer, "_mixed"):  # those of this package
                layer._mixed = list(names)
                stack.callback(setattr, layer, "_mixed", None)
        yield


def forget_hooks(known: list[tuple[nn.Module, set[int]]]) -> None:
    """Remove pre-forward hooks but for those known: LoRA's outlive a mixed batch that fails."""
    for module, own in known:
        for key in set(module._forward_pre_hooks) - own:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def _fits(names: list[str], args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call shows its inputs, as many as there are names."""
    inputs = (*args, *(kwargs.get(name) for name in INPUTS))
    samples = next((len(x) for x in inputs if isinstance(x, Tensor) and x.dim()), None)
    if samples not in (None, len(names)):
        raise ValueError(
            f"adapter_names has {len(names)} names for {samples} samples: pass one for each"
        )
    return samples is not None
