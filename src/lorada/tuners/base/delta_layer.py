"""The base of tuners that add a term to the output of linear layers: y = W x + b + term(x).

A subclass of ``DeltaLayer`` creates the weights of an adapter (``update_layer``) and computes its
term (``term``) from the input x or the output W x + b. If the term is linear in x, the part can be
merged (``merged_weights``). A subclass of ``DeltaModel`` names its layer. ``sora`` is a short
example.
"""

from typing import Any

from peft.tuners.tuners_utils import _get_in_out_features
from torch import Tensor, nn

from lorada.tuners.base.linears import layer_linear_names, linear_of
from lorada.tuners.base.part_config import LoradaPeftConfig
from lorada.tuners.base.tuner import LoradaTuner, LoradaTunerLayer, listed


class DeltaLayer(LoradaTunerLayer):
    """A linear layer and the terms of any number of adapters."""

    unmerge: Any  # a method of PEFT's base class

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())

    def update_layer(self, adapter_name: str, config: Any, model: nn.Module, key: str) -> None:
        """Create the weights of an adapter for the linear layer named ``key`` in ``model``.

        Each tuner has its own; here it raises NotImplementedError.
        """
        raise NotImplementedError

    def term(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        """The term of an adapter (…, out), in the dtype of its weights.

        ``x`` is the input (…, in), ``output`` that of the linear layer, W x plus the bias.

        Raises:
            NotImplementedError: in this class; each tuner has its own term.
        """
        raise NotImplementedError

    def without_bias(self, output: Tensor) -> Tensor:
        """W x, given the output W x + b of the linear layer."""
        bias: Tensor | None = self.get_base_layer().bias
        return output if bias is None else output - bias

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The output of the linear layer plus the term of each active adapter."""
        if self._disable_adapters and self.merged:
            self.unmerge()  # as PEFT's layers do: a disabled adapter must not act from the weights
        output: Tensor = self.base_layer(x, *args, **kwargs)
        result = output
        if not self.merged:
            for name in self.active_here():  # none while adapters are disabled
                # Each term reads x or W x + b, never another's sum, so their order does not matter.
                # What the term has of its own scale, such as α/r, is in it already.
                result = result + self.ist_scaled(name, self.term(name, x, output))
        return result.to(output.dtype)


class DeltaModel(LoradaTuner):
    """A tuner that wraps linear layers in one kind of ``DeltaLayer``.

    Without ``target_modules`` these are the entry of ``target_module_mapping`` for the type of the
    model, or, if that mapping is empty, all linear layers of the model's repeated layers.
    """

    tuner_layer_cls: type[DeltaLayer]

    def _prepare_adapter_config(
        self, peft_config: LoradaPeftConfig, model_config: Any
    ) -> LoradaPeftConfig:
        config: Any = peft_config
        if config.target_modules is None:
            config.target_modules = self._default_targets(config, model_config.get("model_type"))
        return peft_config

    def _default_targets(self, config: Any, model_type: str | None) -> list[str]:
        """Default ``target_modules``: the tuner's for the model, or all linear layers.

        A type of model that the tuner has none for is refused.
        """
        defaults: Any = self.target_module_mapping
        if not defaults:
            return layer_linear_names(self.model)
        if model_type not in defaults:
            raise ValueError(
                f"{type(config).__name__} has no default target_modules for {model_type} models: "
                f"choose some of {listed(self.candidates(config))}"
            )
        return list(defaults[model_type])

    def _create_and_replace(
        self,
        config: Any,
        name: str,
        target: Any,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        """Wrap a target in a layer of this tuner, or add an adapter to the layer that is there.

        PEFT calls this for each module that ``target_modules`` matches.

        Raises:
            ValueError: for a module that is not linear.
        """
        layer = target
        if not isinstance(target, self.tuner_layer_cls):
            if linear_of(target) is None:
                raise ValueError(
                    f"target_modules matches {current_key}, which is {type(target).__name__} and "
                    f"not a linear layer; this model has {listed(self.candidates(config))}"
                )
            layer = self.tuner_layer_cls(target)
            self._replace_module(parent, target_name, layer, target)
        layer.update_layer(name, config, self.model, current_key)
        layer.train(target.training)
