"""Several parts around one module, and several adapters with different parts there.

PEFT wraps: LoRA and then IA3 on one module give ``IA3(base_layer=LoRA(base_layer=Linear))``. Within
one adapter the order is that of its parts. A second adapter must find the layers of the first. The
file of an adapter must not depend on other adapters, so its names are those it would have alone.
"""

import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import _get_submodules
from peft.utils.error import NoMatchingPeftModuleError
from torch import Tensor, nn

from lorada.tuners.base.linears import BASE_LAYER, has_adapter, layer_kind, linear_names, wrappers
from lorada.tuners.base.part_config import refuse_layers
from lorada.tuners.base.tuner import AttachedModel, choosing_settings, listed


def tuner_of(part: PeftConfig) -> type[BaseTuner]:
    """The class of the tuner that places a part."""
    tuner_cls: type[BaseTuner] = PEFT_TYPE_TO_TUNER_MAPPING[part.peft_type]
    return tuner_cls


def wraps(part: PeftConfig) -> bool:
    """Whether a part wraps modules instead of being attached to them."""
    return not issubclass(tuner_of(part), AttachedModel)


def part_kind(tuner: BaseTuner, adapter_name: str) -> tuple[type, str | None]:
    """Layer class and placement of a part; two parts on one module must differ in them."""
    config = tuner.peft_config[adapter_name]
    return tuner.tuner_layer_cls, getattr(config, "placement", None)


@contextmanager
def layers_shown(
    model: nn.Module, layer_cls: type | None = None, *, innermost: bool = False
) -> Iterator[None]:
    """Show a tuner its own layer in layers of others, so that it adds to it and does not wrap it.

    ``innermost`` shows the innermost module where the tuner has no layer yet: some measure or count
    linear layers and see none inside another layer. What they place goes around the others' layers.

    Args:
        model: with layers of other tuners.
        layer_cls: the class of the tuner's layers; None if it has none yet.
        innermost: whether the innermost module is shown where there is no such layer.
    """
    hidden = []
    for name, chain in wrappers(model).items():
        own_layers = [layer for layer in chain if layer_kind(layer) is layer_cls]
        inner: Any = own_layers[0] if own_layers else None
        if inner is None and innermost:
            inner = chain[-1].base_layer
        if inner is None or inner is chain[0]:
            continue
        parent, _, child = _get_submodules(model, name)
        hidden.append((parent, child, chain[0], inner))
        setattr(parent, child, inner)
    try:
        yield
    finally:
        for parent, child, outermost, inner in hidden:
            # What stands there now: the module that was shown, or a layer of the tuner around it.
            placed: Any = getattr(parent, child)
            if placed is inner:
                setattr(parent, child, outermost)
            else:  # the tuner has wrapped what it was shown
                placed.base_layer = outermost


def check_order(model: nn.Module, adapter_name: str, parts: list[PeftConfig]) -> None:
    """Refuse an adapter if other adapters change the order in which its parts are nested."""
    kinds_in_order = [tuner_of(part).tuner_layer_cls for part in parts]
    for name, chain in wrappers(model).items():
        # From the inside out, as parts are applied.
        own_layers = [layer for layer in reversed(chain) if has_adapter(layer, adapter_name)]
        kinds = [layer_kind(layer) for layer in own_layers]
        if kinds != sorted(kinds, key=kinds_in_order.index):
            raise ValueError(
                f"adapter {adapter_name!r} applies its parts to {name} in another order than an "
                "adapter that is loaded already: load it into a model of its own"
            )


def train_biases(model: nn.Module, tuners: list[BaseTuner]) -> None:
    """Let the biases train that the ``bias`` of any placed part asks for.

    PEFT does so when it places the first part, but for each further one it restores what trained.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for tuner in tuners:
        tuner._mark_only_adapters_as_trainable(model)
        trained += [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad = True


# PEFT's layers that compute with the base layer's weight, or with a copy of what they wrap, instead
# of calling it.
BLIND = ("FrodLayer", "GloraLayer", "HRALayer", "LNTuningLayer", "SupertuningLayer")


def refuse_blind(model: nn.Module) -> None:
    """Refuse layers that another layer wraps without ever calling them."""
    for name, chain in wrappers(model).items():
        for layer in chain[:-1]:
            kind = layer_kind(layer).__name__
            if kind in BLIND:
                raise ValueError(
                    f"{kind.removesuffix('Layer')} computes with the weight of {name} and would "
                    "ignore the other parts there: put it before them, as in hra+lora, or load it "
                    "into a model of its own"
                )


def names_alone(model: nn.Module, adapter_name: str) -> dict[str, str]:
    """Names of an adapter's wrapping layers → their names if it were the only adapter.

    The module that they wrap is among them: its bias is saved with an adapter that trains it.
    """
    names = {}
    for name, chain in wrappers(model).items():
        depths = [depth for depth, layer in enumerate(chain) if has_adapter(layer, adapter_name)]
        depths.append(len(chain))  # of the wrapped module
        # Alone, the adapter's layers follow one another: each is as deep as its place among them.
        for depth_alone, depth in enumerate(depths):
            # As for ``q_proj.base_layer`` → ``q_proj``, where another adapter's layer is outside.
            names[name + BASE_LAYER * depth] = name + BASE_LAYER * depth_alone
    return names


def rename(state_dict: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A state dict with some modules renamed.

    Args:
        state_dict: tensors by their full names.
        names: name of a module → its new name. The innermost module above a tensor counts.
    """
    renamed = {}
    for key, value in state_dict.items():
        owner = owner_of(key, names)
        new_key = names[owner] + key[len(owner) :] if owner else key
        renamed[new_key] = value
    return renamed


def layers_of(model: nn.Module, keys: Iterable[str]) -> dict[str, BaseTunerLayer]:
    """The tuner layer that a key of a state dict belongs to, of each key that has one."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            layers[name] = module
    layer_of_key = {}
    for key in keys:
        owner = owner_of(key, layers)
        if owner:
            layer_of_key[key] = layers[owner]
    return layer_of_key


def keys_of_others(model: nn.Module, tuner_cls: type[BaseTuner], keys: Iterable[str]) -> set[str]:
    """The keys of tuner layers of another kind than those of ``tuner_cls``."""
    # AdaLoRA's layers are of LoRA's kind, but are saved by its own tuner.
    is_adalora = tuner_cls is AdaLoraModel
    others = set()
    for key, layer in layers_of(model, keys).items():
        same_kind = layer_kind(layer) is tuner_cls.tuner_layer_cls
        if not same_kind or isinstance(layer, AdaLoraLayer) is not is_adalora:
            others.add(key)
    return others


def owner_of(key: str, names: dict[str, Any]) -> str:
    """The longest of ``names`` that is a module above ``key``; empty if none is."""
    # From the key upwards, so that the innermost module comes first.
    owner = key.rpartition(".")[0]
    while owner and owner not in names:
        owner = owner.rpartition(".")[0]
    return owner


@contextmanager
def part_named_in_errors(
    model: nn.Module, part: PeftConfig, parts: list[PeftConfig]
) -> Iterator[None]:
    """Turn an error of placing a part into one line that names the part and possible targets.

    Raises:
        ValueError: in place of the errors that PEFT's tuners raise.
    """
    try:
        refuse_layers(part)
        yield
    except (ValueError, TypeError, NotImplementedError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, NoMatchingPeftModuleError):
            text = f"{choosing_settings(part)} matched no module"
        if re.search("target.modules", text, re.IGNORECASE) and "this model has" not in text:
            text += f"; this model has {listed(linear_names(model))}"
        position = next(i for i, other in enumerate(parts, 1) if other is part)
        raise ValueError(
            f"{type(part).__name__}, part {position} of {len(parts)} of the stack: {text}"
        ) from error


class OwnNorm(LNTuningLayer):  # type: ignore[misc]
    """A norm and the trained copies of any number of adapters."""

    base_layer: Any

    @property
    def active_adapters(self) -> list[str]:
        """The active adapters that have a copy; PEFT's layer would look for one of each."""
        return [name for name in super().active_adapters if name in self.ln_tuning_layers]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The norm in the dtype of the active copy, which is fp32 on a base in 16 bits."""
        input_dtype = x.dtype
        if self.active_adapters and not (self.disable_adapters or self.merged):
            x = x.to(next(self.ln_tuning_layers[self.active_adapters[0]].parameters()).dtype)
        output: Tensor = super().forward(x, *args, **kwargs)
        return output.to(input_dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put a trained copy in the norm's place, rounded to its dtype.

        PEFT exchanges the two: the norm would give fp32 to layers in 16 bits, and an adapter that
        is saved while it is merged would have the untrained norm. So the copy itself stays.
        """
        already = list(self.merged_adapters)
        super().merge(adapter_names=adapter_names, safe_merge=safe_merge)
        if self.merged_adapters == already:
            return
        (name,) = self.merged_adapters
        trained, norm = self.base_layer, self.ln_tuning_layers[name]
        self.ln_tuning_layers[name] = trained
        self.base_layer = copy.deepcopy(trained).requires_grad_(False)
        for key, parameter in self.base_layer.named_parameters():
            parameter.data = parameter.data.to(norm.get_parameter(key).dtype)
        # ``unmerge`` puts it back.
        self._norm = (norm,)  # in a tuple, as its weights are no part of the model now

    def unmerge(self) -> None:
        """Put the norm back."""
        if self.merged:
            (norm,) = self._norm
            # The model may have been moved since.
            self.base_layer = norm.to(next(self.base_layer.parameters()))
            self.merged_adapters.clear()


def let_stand_beside_others(model: nn.Module) -> None:
    """Let the norms that LN tuning has placed in a model stand aside for adapters without it."""
    for module in model.modules():
        if type(module) is LNTuningLayer:
            module.__class__ = OwnNorm
