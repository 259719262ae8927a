"""Where the FFN of a transformers layer is, what it reads and where an adapter beside it joins.

A place is the name of a module within the layer and ``in`` or ``out``: its first input, or its
(first) output. Without a name it is the layer's own. LoRA and its kin replace linears, and put them
back when they are merged, so the hook of a place at a linear follows whatever stands there.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lorada.tuners.base.linears import linear_of

Change = Callable[[Tensor], Tensor | None]


def _always(layer: nn.Module) -> bool:
    return True


@dataclass(frozen=True)
class Site:
    """The FFN of one kind of layer.

    Attributes:
        host: the module that holds the part as its child ``bneck``.
        norms: the norms of the layer, all of them, which tell one kind of layer from another.
        residual: places of the residual stream at the FFN; the last one that runs counts.
        normed: places of what the FFN reads; the same tensor in a post-LN layer.
        added: the place where A(x) is added, behind the FFN's dropout and, in a post-LN layer, in
            front of the norm. Where no module lies there, the output of a pre-LN layer itself,
            which is the residual stream + FFN. What runs here before the FFN is left alone.
        when: what else must hold for a layer whose modules do not tell.
        summed: whether what is at ``added`` is the residual stream + FFN already.
        beside: whether attention reads the same stream side by side with the FFN, so that no sum
            of that stream and the FFN alone exists.
        alone: the place where FFN(x) leaves by itself, where ``added`` has a sum and a module gives
            the one; empty otherwise.
    """

    host: str
    norms: tuple[str, ...]
    residual: tuple[str, ...]
    normed: tuple[str, ...]
    added: str
    when: Callable[[nn.Module], bool] = _always
    summed: bool = False
    beside: bool = False
    alone: str = ""


def _mlp(
    residual: str,
    *norms: str,
    added: str = "mlp.out",
    when: Callable[[nn.Module], bool] = _always,
    summed: bool = False,
    beside: bool = False,
    alone: str = "",
) -> Site:
    """A pre-LN layer with a module ``mlp``; ``residual`` is the norm in front of it."""
    reads = (f"{residual}.in",), ("mlp.in",)
    return Site("mlp", norms, *reads, added, when, summed, beside, alone)


def _is(*names: str) -> Callable[[nn.Module], bool]:
    return lambda layer: any(cls.__name__ in names for cls in type(layer).__mro__)


def _norm_first(layer: nn.Module) -> bool:
    """Whether a layer of the Fairseq kind is pre-LN, which its class or its config decides."""
    pre_ln = _is("MBartEncoderLayer", "MBartDecoderLayer", "WhisperEncoderLayer",
                 "WhisperDecoderLayer")  # fmt: skip
    return pre_ln(layer) or bool(getattr(layer, "do_layer_norm_before", False))


def _norm_last(layer: nn.Module) -> bool:
    post_ln = _is("BartEncoderLayer", "BartDecoderLayer")
    return post_ln(layer) or not getattr(layer, "do_layer_norm_before", True)


# Attention and FFN of Fairseq's layers, which have the linears fc1 and fc2 and no module for both.
_SELF, _CROSS, _FINAL = "self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"


def _fairseq_pre_ln(*norms: str) -> Site:
    return Site(_FINAL, norms, (f"{_FINAL}.in",), (f"{_FINAL}.out",), "out", _norm_first, True)


def _fairseq_post_ln(*norms: str) -> Site:
    reads = tuple(f"{norm}.out" for norm in norms if norm != _FINAL)
    return Site(_FINAL, norms, reads, reads, f"{_FINAL}.in", _norm_last, True)


_FALCON = _is("FalconDecoderLayer")  # no module has its dropout
_LLAMA = ("input_layernorm", "post_attention_layernorm")

SITES = (
    # Falcon-RW, -7B and -40B; the last two run attention and FFN side by side.
    _mlp("post_attention_layernorm", *_LLAMA, added="out", when=_FALCON, summed=True,
         alone="mlp.out"),
    _mlp("input_layernorm", "input_layernorm", added="out", when=_FALCON, summed=True,
         beside=True, alone="mlp.out"),
    _mlp("ln_mlp", "ln_attn", "ln_mlp", added="out", when=_FALCON, summed=True,
         beside=True, alone="mlp.out"),
    # GPT-NeoX, mostly side by side; Phi-3; Bloom, whose mlp returns the sum with the residual
    # stream; Llama, Mistral, Qwen, Gemma.
    _mlp("post_attention_layernorm", *_LLAMA, added="post_mlp_dropout.out", beside=True),
    _mlp("post_attention_layernorm", *_LLAMA, added="resid_mlp_dropout.out"),
    _mlp("post_attention_layernorm", *_LLAMA, when=_is("BloomBlock"), summed=True,
         alone="mlp.dense_4h_to_h.out"),
    _mlp("post_attention_layernorm", *_LLAMA),
    # Gemma 2 and 3: each half has a norm before and one after it, which belongs to the half.
    _mlp("pre_feedforward_layernorm", *_LLAMA, "pre_feedforward_layernorm",
         "post_feedforward_layernorm", added="post_feedforward_layernorm.out"),
    # Phi, side by side. Its dropout and ViT's serve the attention first.
    _mlp("input_layernorm", "input_layernorm", added="resid_dropout.out", beside=True),
    _mlp("layernorm_after", "layernorm_before", "layernorm_after", added="dropout.out"),
    _mlp("ln_2", "ln_1", "ln_2"),  # GPT-2
    _mlp("ln_1", "ln_1", beside=True),  # GPT-J, side by side
    _mlp("mlp_norm", "attn_norm", "mlp_norm"),  # ModernBERT
    # T5: each half of a block is a layer of its own.
    Site("DenseReluDense", ("layer_norm",), ("layer_norm.in",), ("DenseReluDense.in",),
         "dropout.out"),
    # BERT, RoBERTa, DeBERTa.
    Site("intermediate", ("output.LayerNorm",), ("intermediate.in",), ("intermediate.in",),
         "output.dropout.out"),
    # DistilBERT.
    Site("ffn", ("sa_layer_norm", "output_layer_norm"), ("ffn.in",), ("ffn.in",), "ffn.out"),
    # mBART, Whisper and most OPT; BART and OPT-350m. The decoder of the first has three norms.
    _fairseq_pre_ln(_SELF, _CROSS, _FINAL),
    _fairseq_pre_ln(_SELF, _FINAL),
    _fairseq_post_ln(_SELF, _CROSS, _FINAL),
    _fairseq_post_ln(_SELF, _FINAL),
)  # fmt: skip


def site_of(layer: nn.Module) -> Site | None:
    """The first site that fits a layer, or None if its FFN is none that we know."""
    names = {name for name, _ in layer.named_modules()}
    own_norms = {name for name, _ in layer.named_children() if re.search(r"norm|^ln_", name)}
    for site in SITES:
        places = {_split(place)[0] for place in (*site.residual, *site.normed, site.added)}
        if (
            {site.host, *site.norms} | places <= names
            and own_norms <= set(site.norms)
            and site.when(layer)
        ):
            return site
    return None


class Follower:
    """The hook of a place at a linear: on the outermost module there when its parent is called."""

    def __init__(self, layer: nn.Module, place: str, change: Change) -> None:
        name, self._side = _split(place)
        holder, _, self._name = name.rpartition(".")
        self._change = change
        self._place: nn.Module | None = None
        self._handle: RemovableHandle | None = None
        parent = layer.get_submodule(holder)
        self._parent_handle = parent.register_forward_pre_hook(self._follow)
        self._follow(parent, ())

    def _follow(self, parent: nn.Module, args: Any) -> None:
        place = getattr(parent, self._name)
        if place is self._place:
            return
        if self._handle is not None:
            self._handle.remove()
        self._place, self._handle = place, _hook(place, self._side, self._change)

    def remove(self) -> None:
        """Take both hooks off the model."""
        self._parent_handle.remove()
        if self._handle is not None:
            self._handle.remove()


def at(
    layer: nn.Module, place: str, change: Change, *, first: bool = False
) -> list["RemovableHandle | Follower | AtEnd"]:
    """Call ``change`` with the tensor at a place of a layer; what it returns takes its place.

    Where ``change`` has nothing to do it returns None. With ``first`` it is called before the
    changes that are there already, which other modules than linears allow.
    """
    name, side = _split(place)
    module = layer.get_submodule(name)
    if name and linear_of(module) is not None:
        return [Follower(layer, place, change)]
    if name:
        return [_hook(module, side, change, first)]
    end = layer.__dict__.get(_End.name) or _End(layer)
    end.changes.insert(0 if first else len(end.changes), change)
    return [AtEnd(end, change)]


def _hook(module: nn.Module, side: str, change: Change, first: bool = False) -> RemovableHandle:
    # Partial functions and not closures: a deep copy of the model then calls its own parts.
    if side == "in":
        return module.register_forward_pre_hook(
            partial(_before, change), prepend=first, with_kwargs=True
        )
    return module.register_forward_hook(partial(_after, change), prepend=first)


def _split(place: str) -> tuple[str, str]:
    name, _, side = place.rpartition(".")
    return name, side


def _before(change: Change, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
    if args:
        changed = change(args[0])
        return None if changed is None else ((changed, *args[1:]), kwargs)
    name = next(iter(kwargs))
    changed = change(kwargs[name])
    return None if changed is None else (args, {**kwargs, name: changed})


def _after(change: Change, module: nn.Module | None, args: Any, output: Any) -> Any:
    if not isinstance(output, tuple):
        return change(output)
    changed = change(output[0])
    return None if changed is None else (changed, *output[1:])


# transformers checkpoints the forward of a layer, inside of the layer's hooks. A tensor from within
# must not be used out there: its gradient would be lost, or its memory kept.


class _End:
    """All changes at the output of a layer, one after another, inside of its checkpoint."""

    name = "lorada_end"

    def __init__(self, layer: nn.Module) -> None:
        self.changes: list[Change] = []
        self.layer = layer
        layer.__dict__[self.name] = self
        self._handles = [
            layer.register_forward_pre_hook(self._enter),
            # In front of hooks that transformers may have put there to collect hidden states.
            layer.register_forward_hook(self._leave, prepend=True),
        ]

    def change(self, output: Any) -> Any:
        for change in self.changes:
            changed = _after(change, None, (), output)
            output = output if changed is None else changed
        return output

    def _enter(self, layer: Any, args: Any) -> None:
        if getattr(layer, "gradient_checkpointing", False):
            plain = layer._gradient_checkpointing_func
            plain = getattr(plain, "plain", plain)  # left there by a forward that failed
            layer._gradient_checkpointing_func = _Checkpoint(plain, self)

    def _leave(self, layer: Any, args: Any, output: Any) -> Any:
        if getattr(layer, "gradient_checkpointing", False):
            checkpoint = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = checkpoint.plain
            if checkpoint.ran:  # which it does not in eval mode or without gradients
                return None
        return self.change(output)

    def remove(self, change: Change) -> None:
        """Forget a change, and with the last one the hooks."""
        self.changes.remove(change)
        if not self.changes:
            for handle in self._handles:
                handle.remove()
            del self.layer.__dict__[self.name]


class AtEnd:
    """The handle of one change at the end of a layer."""

    def __init__(self, end: _End, change: Change) -> None:
        self._end, self._change = end, change

    def remove(self) -> None:
        """Take the change off the layer."""
        self._end.remove(self._change)


class _Checkpoint:
    """The checkpoint function of a layer, for one forward, with the changes made inside of it."""

    def __init__(self, plain: Any, end: _End) -> None:
        self.plain, self.ran, self._end = plain, False, end

    def __call__(self, run: Callable[..., Any], *args: Any) -> Any:
        self.ran = True
        return self.plain(partial(self._run, run), *args)

    def _run(self, run: Callable[..., Any], *args: Any) -> Any:
        return self._end.change(run(*args))
