"""Bottleneck adapters as a PEFT tuner: two small matrices with a nonlinearity between them.

    A(x) = s · U φ(D x + b_D) + s · b_U

D (r, d) and U (d, r) are the matrices, φ the nonlinearity and s the scale, for a width d and a rank
r. The default placement ``ffn`` is the scaled parallel adapter of He et al., "Towards a Unified
View of Parameter-Efficient Transfer Learning" (2021): the FFN's output y becomes y + A(x).
The paper's settings are in its Tables 15, 16 and 19.

``placements`` says where each goes in every architecture. Hooks read the tensor at a hook point, or
replace it: ``FollowingHook`` at a linear layer, which LoRA may wrap or unwrap, and ``LayerOutput``
at the output of a layer, which must change within the layer's gradient checkpoint.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lorada.attention.hooks import FollowingHook
from lorada.functional.precision import recomputed
from lorada.tuners.base.linears import linear_of
from lorada.tuners.base.part_config import Count, LoradaPeftConfig, Number, Rate, register
from lorada.tuners.base.tuner import AttachedLayer, AttachedModel, Entries, listed
from lorada.tuners.bottleneck.placements import PLACEMENTS, Insertion, insertions

# Gets the tensor at a hook point; returns what replaces it, or None to leave it.
Change = Callable[[Tensor], Tensor | None]


def hook_at(layer: nn.Module, point: str, change: Change, *, first: bool = False) -> Any:
    """Call ``change`` with the tensor at a hook point, in every forward.

    It is no closure, which a deep copy of the model would share. ``first`` calls it before the
    changes that are already there, but has no effect at a linear layer.
    """
    name, _, side = point.rpartition(".")
    if not name:
        output = layer.__dict__.get(LayerOutput.key) or LayerOutput(layer)
        return output.add(change, first)
    module = layer.get_submodule(name)
    if linear_of(module) is not None:
        path, _, child = name.rpartition(".")
        parent = layer.get_submodule(path)
        hook = FollowingHook(parent, child, partial(_hook, side, change))
        hook.follow(parent)  # now and not at the first call: hooks run in the order of placement
        return hook
    return _hook(side, change, module, first)


def _hook(side: str, change: Change, module: nn.Module, first: bool = False) -> RemovableHandle:
    """Call ``change`` with a module's first input (``in``) or its output."""
    # Partial functions and not closures: a deep copy of the model then calls its own adapters.
    if side == "in":
        return module.register_forward_pre_hook(
            partial(_change_input, change), prepend=first, with_kwargs=True
        )
    return module.register_forward_hook(partial(_change_output, change), prepend=first)


def _change_input(
    change: Change, module: nn.Module, args: Any, kwargs: Any
) -> tuple[Any, Any] | None:
    if args:
        changed = change(args[0])
        return None if changed is None else ((changed, *args[1:]), kwargs)
    name = next(iter(kwargs))  # the first input may be passed by its name
    changed = change(kwargs[name])
    return None if changed is None else (args, {**kwargs, name: changed})


def _change_output(change: Change, module: nn.Module | None, args: Any, output: Any) -> Any:
    if not isinstance(output, tuple):
        return change(output)
    changed = change(output[0])
    return None if changed is None else (changed, *output[1:])


class LayerOutput:
    """All changes of the output of one layer, one after another.

    transformers checkpoints the ``forward`` of a layer, and the layer's own hooks run outside of
    the checkpoint. A tensor saved inside must not be used outside: it would stay in memory, or lose
    its gradient. So in a checkpointed forward, the checkpoint function makes the changes.
    """

    key = "lorada_output"  # the attribute of the layer that holds this object

    def __init__(self, layer: nn.Module) -> None:
        """Hook the layer, and be found on it under ``key``."""
        self.changes: list[Change] = []
        self.layer = layer
        self._plain: Any = None  # the checkpoint function of the layer
        self._ran = False  # whether the running forward has been checkpointed
        layer.__dict__[self.key] = self
        self._handles = [
            layer.register_forward_pre_hook(self._before),
            # Before the hooks with which transformers may collect hidden states.
            layer.register_forward_hook(self._after, prepend=True),
        ]

    def add(self, change: Change, first: bool) -> Any:
        """Add a change, before or after the others, and return its handle."""
        self.changes.insert(0 if first else len(self.changes), change)
        return SimpleNamespace(remove=partial(self.drop, change))

    def drop(self, change: Change) -> None:
        """Remove a change, and with the last one the hooks."""
        self.changes.remove(change)
        if not self.changes:
            for handle in self._handles:
                handle.remove()
            del self.layer.__dict__[self.key]

    def changed(self, output: Any) -> Any:
        """The output of the layer after all changes."""
        for change in self.changes:
            changed = _change_output(change, None, (), output)
            if changed is not None:
                output = changed
        return output

    def _before(self, layer: Any, args: Any) -> None:
        self._ran = False
        if getattr(layer, "gradient_checkpointing", False):
            # It is there already if a forward has failed.
            if layer._gradient_checkpointing_func != self._checkpoint:
                self._plain = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = self._checkpoint

    def _checkpoint(self, run: Callable[..., Any], *args: Any) -> Any:
        self._ran = True
        return self._plain(partial(self._run, run), *args)

    def _run(self, run: Callable[..., Any], *args: Any) -> Any:
        return self.changed(run(*args))

    def _after(self, layer: Any, args: Any, output: Any) -> Any:
        if getattr(layer, "gradient_checkpointing", False):
            layer._gradient_checkpointing_func = self._plain
        # Checkpointed, it is changed already: not in eval mode and not without gradients.
        return None if self._ran else self.changed(output)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}


def _by_placement() -> Any:
    """A field whose default depends on the placement."""
    return field(default=None)


@dataclass
class BottleneckConfig(LoradaPeftConfig):
    """Size and placement of bottleneck adapters.

    A setting that is None gets the default of the placement, which its description names.

    Attributes:
        rank: width of the bottleneck.
        scale: s, by which A's output is multiplied. Default 4 for ``ffn``, else 1. The paper takes
            2 on GLUE, and 4 on XSum, on translation and for LLMs.
        placement: where the adapters go.
            ``ffn``: beside each FFN, FFN(x) + A(x).
            ``pa_attn``: beside each attention, added in front of its output projection.
            ``houlsby``: behind each attention and each FFN, y + A(y).
            ``pfeiffer``: behind the norm that follows the FFN, LN(A(z) + y + x) with
            z = LN(y + x) and y = FFN(x). A pre-LN layer gets A(y + x) + y + x, or A(y) + y + x if
            its attention runs beside the FFN. A reads y without the terms of other adapters.
            ``series``: behind linear layers, y + A(y) with y = Wx.
            ``parallel``: beside linear layers, Wx + A(x).
        activation: φ: ``relu``, ``tanh`` or ``gelu``. Default tanh on linear layers, else relu.
        use_bias: whether D and U have biases. Default False on linear layers, else True.
        layer_norm: whether A normalises x first. Default True for ``pa_attn``, else False. With
            ``houlsby`` it applies only to the adapters behind attention.
        init: ``lora`` draws D Kaiming-uniform and sets U and the biases to 0, so that the model
            starts as the base; ``bert`` draws D and U from N(0, 0.02²) and sets the biases to 0, so
            that it does not. Default ``lora`` for ``ffn``, else ``bert``.
        dropout: rate of the dropout behind φ; None for the rate of the model's own dropout. With
            ``series`` and ``parallel``, on linear layers, None becomes 0.
        adapter_input: what A reads with placement ``ffn``. ``residual`` is the residual stream in
            front of a pre-LN layer's norm, as in the mBART code of He et al.; ``normed`` is what
            the FFN reads.
        target_modules: names or a regex of the modules that get an adapter: FFNs, attentions or
            linear layers, depending on the placement. None for all FFNs or attentions, or for
            LLaMA's ``down_proj`` (series), ``up_proj`` and ``down_proj`` (parallel).
        exclude_modules: names or a regex of modules to leave out.
    """

    placement: Literal["ffn", "pa_attn", "houlsby", "pfeiffer", "series", "parallel"] = field(
        default="ffn"
    )
    rank: Count = field(default=16)
    scale: Number = _by_placement()  # noqa: RUF009
    activation: Literal["relu", "tanh", "gelu"] = _by_placement()
    use_bias: bool = _by_placement()
    layer_norm: bool = _by_placement()
    init: Literal["lora", "bert"] = _by_placement()
    dropout: Rate | None = _by_placement()  # noqa: RUF009
    adapter_input: Literal["residual", "normed"] = field(default="residual")
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        """Fill in what the placement says, and check the values.

        Raises:
            ValueError: for a value that its field does not take, or ``adapter_input`` elsewhere
                than ``ffn``.
        """
        # A placement that does not exist is refused below, by the type of its field.
        defaults = PLACEMENTS.get(self.placement, PLACEMENTS["ffn"])
        for name, value in vars(defaults).items():
            # ``linears`` are the default targets of a placement, not a setting.
            if name != "linears" and getattr(self, name) is None:
                setattr(self, name, value)
        super().__post_init__()
        # "residual" is the default, so somebody has set another value.
        if self.adapter_input != "residual" and self.placement != "ffn":
            raise ValueError(
                f"adapter_input={self.adapter_input!r} is about placement 'ffn', "
                f"not {self.placement!r}: leave it out"
            )


class BottleneckLayer(AttachedLayer):
    """The adapters of one ``Insertion``, by adapter name; hooks read and change the model."""

    adapter_layer_names = (
        "lora_down",
        "lora_down_bias",
        "lora_up",
        "lora_up_bias",
        "lora_norm_weight",
        "lora_norm_bias",
    )
    other_param_names = ("configs", "dropouts")
    lora_down: Entries
    lora_down_bias: Entries
    lora_up: Entries
    lora_up_bias: Entries
    lora_norm_weight: Entries
    lora_norm_bias: Entries
    configs: dict[str, BottleneckConfig]

    def __init__(self, insertion: Insertion) -> None:
        """Hook the model at the points that the insertion reads and changes."""
        layer = insertion.layer
        super().__init__(layer.get_submodule(insertion.target), layer)
        self.dropouts: dict[str, float] = {}
        self._insertion = insertion
        self._saved: dict[str, Tensor] = {}
        # Save y before other adapters add to it, also those that were placed before this one.
        first = insertion.input in ("y + x", "LN(y + x)")
        for name, points in insertion.saves.items():
            for point in points:
                self._handles.append(hook_at(layer, point, partial(self._save, name), first=first))
        self._handles.append(hook_at(layer, insertion.add_at, self._add))

    @property
    def host(self) -> nn.Module:
        """The target, or the module that wraps it now."""
        return self._insertion.layer.get_submodule(self._insertion.target)

    def _save(self, name: str, x: Tensor) -> None:
        """Keep a tensor of the running forward for ``_add``, by its name in the insertion."""
        self._saved[name] = x

    def _add(self, here: Tensor) -> Tensor | None:
        """The tensor at the hook point with A of each active adapter added."""
        if not self._insertion.saves.keys() <= self._saved.keys():
            return None  # the module runs more than once in a layer, and this is not the FFN's run
        saved, self._saved = self._saved, {}
        result = here
        for name in self.active_here():
            term = self.ist_scaled(name, self.adapt(name, self._input(name, saved, here)))
            # OPT's FFN has the tokens of all samples in one axis.
            result = result + term.view_as(here).to(here.dtype)
        return result

    def _input(self, name: str, saved: dict[str, Tensor], here: Tensor) -> Tensor:
        """The tensor that feeds A: see ``Insertion.input``."""
        config, insertion = self.configs[name], self._insertion
        match insertion.input:
            case "saved":
                return saved[config.adapter_input if config.placement == "ffn" else "x"]
            case "here":
                return here
            case "here - x":
                return here - saved["x"].view_as(here)
        total = saved["y"] + saved["x"] if "x" in saved else saved["y"]
        if insertion.input == "y + x":
            return total
        norm = insertion.layer.get_submodule(insertion.add_at.removesuffix(".in"))
        normed: Tensor = norm.forward(total)  # ``norm(total)`` would run this hook again
        return normed

    def adapt(self, name: str, x: Tensor) -> Tensor:
        """A(x) of one adapter, (…, d) → (…, d), in the dtype of its weights."""
        config = self.configs[name]
        down, up = self.lora_down(name), self.lora_up(name)
        down_bias = self.lora_down_bias(name) if config.use_bias else None
        up_bias = self.lora_up_bias(name) if config.use_bias else None
        has_norm = name in self.lora_norm_weight
        norm = (self.lora_norm_weight(name), self.lora_norm_bias(name)) if has_norm else None

        def narrowed(x: Tensor) -> Tensor:
            """D x + b_D, (…, r)."""
            hidden = x.to(down.dtype)
            if norm is not None:
                weight, bias = norm
                hidden = F.layer_norm(hidden, weight.shape, weight, bias)
            return F.linear(hidden, down, down_bias)

        # Of a narrower input no wide copy is kept, which has as many numbers as the input.
        hidden = narrowed(x) if x.dtype == down.dtype else recomputed(narrowed, x)
        hidden = ACTIVATIONS[config.activation](hidden)
        hidden = F.dropout(hidden, self.dropouts[name], self.training)
        return config.scale * F.linear(hidden, up, up_bias)

    def update_layer(self, adapter_name: str, config: BottleneckConfig, model: Any) -> None:
        """Create the weights of an adapter."""
        hidden = model.config.hidden_size
        fan_in, fan_out = self._insertion.widths or (hidden, hidden)
        self.configs[adapter_name] = config
        dropout = model_dropout(model) if config.dropout is None else config.dropout
        self.dropouts[adapter_name] = dropout
        new = self.new_weight
        self.lora_down[adapter_name] = new(config.rank, fan_in)
        self.lora_up[adapter_name] = new(fan_out, config.rank)
        if config.use_bias:
            self.lora_down_bias[adapter_name] = new(config.rank)
            self.lora_up_bias[adapter_name] = new(fan_out)
        if config.layer_norm and self._insertion.may_norm:
            self.lora_norm_weight[adapter_name] = nn.init.ones_(new(fan_in))
            self.lora_norm_bias[adapter_name] = new(fan_in)
        down, up = self.lora_down[adapter_name], self.lora_up[adapter_name]
        with torch.no_grad():
            if config.init == "bert":
                down.normal_(std=0.02)
                up.normal_(std=0.02)
            else:
                nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            if not config.init_weights:
                up.normal_(std=0.1)


class BottleneckModel(AttachedModel):
    """Places the adapters of a ``BottleneckConfig``."""

    tuner_layer_cls = BottleneckLayer
    insertions: dict[str, Insertion]  # of the adapter that is placed, by the names of targets

    def find_hosts(self, config: BottleneckConfig) -> Iterable[str]:
        """The modules that the placement puts an adapter on."""
        self.insertions = insertions(self.model, config.placement)
        self.host_kind = f"a target of placement={config.placement!r}"
        return self.insertions

    def default_targets(self, config: BottleneckConfig) -> list[str]:
        """All hosts, or only the linear layers that the placement is for.

        Raises:
            ValueError: if the placement is for linear layers that the model does not have by these
                names.
        """
        linears = PLACEMENTS[config.placement].linears
        own_names = {name.rpartition(".")[2] for name in self.hosts}
        if not own_names.issuperset(linears):
            raise ValueError(
                f"placement={config.placement!r} is for {' and '.join(linears)}: give "
                f"target_modules; this model has {listed(self.candidates(config))}"
            )
        return list(linears) or self.candidates(config)

    def no_host(self, config: BottleneckConfig) -> str:
        """Which model the placement does not know, and where to add it."""
        return (
            f"placement={config.placement!r} does not know the layers of "
            f"{type(self.model).__name__}: choose another one, or describe them in "
            "lorada/tuners/bottleneck/placements.py"
        )

    def _create_and_replace(
        self,
        config: Any,
        name: str,
        target: Any,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        """Place an adapter at the insertion of a target; two adapters share a layer."""
        insertion = self.insertions[current_key]
        holder = insertion.layer.get_submodule(insertion.holder)
        layer = getattr(holder, insertion.child, None)
        if layer is None:
            layer = BottleneckLayer(insertion)
            holder.add_module(insertion.child, layer)
        layer.update_layer(name, config, self.model)
        layer.train(holder.training)


def model_dropout(model: Any) -> float:
    """The hidden dropout rate of a transformers model; 0 where its config has none."""
    names = ("hidden_dropout_prob", "hidden_dropout", "resid_pdrop", "dropout", "dropout_rate")
    for name in (*names, "mlp_dropout"):
        value = getattr(model.config, name, None)
        if isinstance(value, int | float):
            return float(value)
    return 0.0


register("BOTTLENECK", BottleneckConfig, BottleneckModel)
