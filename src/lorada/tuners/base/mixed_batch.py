"""Mixed batches, in which each sample names its own adapter (PEFT's ``adapter_names``)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from lorada.tuners.base.layer import LoradaTunerLayer

# Arguments of a model that hold one entry for each sample.
INPUTS = ("input_ids", "inputs", "inputs_embeds", "input_features", "pixel_values")


@contextmanager
def mixed_batch(
    tuner: BaseTuner, names: list[str] | None, *args: Any, **kwargs: Any
) -> Iterator[None]:
    """Set the adapter of each sample in all layers of this package, for one call.

    ``names`` are the adapter of each sample, or ``__base__``; None for an ordinary batch. ``args``
    and ``kwargs`` are the arguments of the call.

    Raises:
        ValueError: in training mode, as in PEFT; for a name that is not loaded; if the numbers of
            names and samples differ.
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
        # `generate` passes its inputs to this function before it repeats them for its beams. PEFT's
        # classes for tasks do not, so there a hook checks them when the base model is called.
        if not _fits(names, args, kwargs):

            def check(module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
                _fits(names, inputs, named)

            hook = tuner.model.register_forward_pre_hook(check, with_kwargs=True)
            stack.callback(hook.remove)
        for layer in tuner.model.modules():
            if isinstance(layer, LoradaTunerLayer):
                layer._adapter_of_sample = list(names)
                stack.callback(setattr, layer, "_adapter_of_sample", None)
        yield


def forget_hooks(known: list[tuple[nn.Module, set[int]]]) -> None:
    """Remove all forward pre-hooks except known ones: after a failed call LoRA's are left."""
    for module, own in known:
        for key in set(module._forward_pre_hooks) - own:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def _fits(names: list[str], args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the inputs are among a call's arguments; there must be a name for each sample."""
    inputs = (*args, *(kwargs.get(name) for name in INPUTS))
    samples = next((len(x) for x in inputs if isinstance(x, Tensor) and x.dim()), None)
    if samples not in (None, len(names)):
        raise ValueError(
            f"adapter_names has {len(names)} names for {samples} samples: pass one for each"
        )
    return samples is not None
