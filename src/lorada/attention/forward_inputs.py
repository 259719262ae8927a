"""What all layers of a model's forward share: some of its inputs, and results computed from them.

Two inputs are not passed on to attention: the number of tokens before a sliding cache dropped the
first keys, and whether the caller passed the positions. A pair of hooks on the model records both.
Where tokens lie follows from inputs that all layers get, so one layer computes it for all.
"""

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Result = TypeVar("Result")


@dataclass(frozen=True)
class ForwardInputs:
    """Facts about the inputs of a model's running forward."""

    # The real tokens of each sample up to this call: their 2-D mask, or their number, (B,) or one
    # for all.
    tokens_so_far: Tensor | int | None = None
    # Whether ``position_ids`` alone may separate sequences packed into a row.
    may_be_packed: bool = True
    # Each row has at least so many tokens with this call; 0 if nothing is known.
    fewest_tokens: int = 0
    # What ``once`` has computed; None if nothing is kept.
    results: dict[Hashable, Any] | None = field(default=None, compare=False, repr=False)

    def once(
        self, compute: Callable[[], Result], tensors: Sequence[Any], *others: Hashable
    ) -> Result:
        """The result of ``compute``, which the first layer computes for all layers.

        It depends on ``tensors``, of which any may be None, and on ``others``.
        """
        # A compiler finds what is computed twice by itself.
        if self.results is None or torch.compiler.is_dynamo_compiling():
            return compute()
        # Sizes that are exported may be symbols, which are no keys.
        facts: Hashable = repr(others) if torch.compiler.is_compiling() else others
        key = (*map(_identity, tensors), facts)
        if key not in self.results:
            # The tensors are kept, so that no other tensor gets the identity of one of them.
            self.results[key] = compute(), tensors
        found: Result = self.results[key][0]
        return found


def _identity(tensor: Any) -> tuple[int, int]:
    """Which tensor it is, and how often it was changed in place, where torch counts that."""
    counted = isinstance(tensor, Tensor) and not tensor.is_inference()
    return id(tensor), tensor._version if counted else 0


# Used outside of the model's forward.
NOTHING_KNOWN = ForwardInputs()


def is_recorded(tensor: Tensor) -> bool:
    """Whether a graph is compiled or captured, which cannot branch on a number of a tensor."""
    capturing = tensor.is_cuda and torch.cuda.is_current_stream_capturing()
    return torch.compiler.is_compiling() or capturing


class _ShortestRow(NamedTuple):
    """How many tokens the shortest row of a batch has, which the host learns without waiting."""

    cache: "weakref.ref[Any]"
    shape: tuple[int, ...]  # rows and slots of the mask at this call
    sent: Tensor  # the tokens with this call, on the CPU; below 0 until the device has sent them
    before: int  # the tokens that were known at the calls before

    def tokens(self) -> int:
        """The tokens of the shortest row, or those of the calls before if they are on their way."""
        sent = int(self.sent)
        return self.before if sent < 0 else sent


def sent_later(number: Tensor) -> Tensor:
    """A number on the CPU, -1 until the device has computed it: the host does not wait."""
    if number.device.type == "cpu":
        return number
    pinned = number.device.type in ("cuda", "xpu")
    host = torch.full((), -1, dtype=number.dtype, device="cpu", pin_memory=pinned)
    return host.copy_(number, non_blocking=True) if pinned else host


class ForwardListener:
    """The hooks that record the ``inputs`` of a model's running forward, for all its layers."""

    def __init__(self, model: nn.Module) -> None:
        self.inputs = NOTHING_KNOWN
        self._shortest: _ShortestRow | None = None
        self._layers = 0
        self._checked: list[tuple[Any, Any]] = []
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._note, with_kwargs=True),
            model.register_forward_hook(self._forget, always_call=True),
        ]

    def add_layer(self) -> None:
        """Count a layer that reads ``inputs``."""
        self._layers += 1

    def check_before(self, module: Any, check: Callable[[nn.Module, Any], None]) -> None:
        """Run a check before ``module``, if it is the first with its config.

        A hook on every layer would cost each step of decoding more than the map does.
        """
        # BART's encoder and decoder share a config and differ in ``is_decoder``.
        side = getattr(module, "is_decoder", None)
        if not any(config is module.config and known == side for config, known in self._checked):
            self._checked.append((module.config, side))
            self._handles.append(module.register_forward_pre_hook(check))

    def remove(self) -> None:
        """Count one layer less, and remove the hooks after the last one."""
        self._layers -= 1
        if self._layers == 0:
            for handle in self._handles:
                handle.remove()

    def _note(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """Before a forward pass: note its tokens, whether rows may be packed, the shortest row."""
        # ``cache`` is the new name in transformers, which still takes the old one.
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        slots_in_cache = getattr(cache, "get_seq_length", lambda: None)()
        ids = args[0] if args else kwargs.get("input_ids")
        new_tokens = kwargs.get("inputs_embeds") if ids is None else ids
        slots = None
        if slots_in_cache is not None and new_tokens is not None:
            slots = slots_in_cache + new_tokens.shape[1]

        # Positions that the model makes itself never restart, nor do those behind a cache that is
        # not known to be empty without reading a tensor.
        has_positions = kwargs.get("position_ids") is not None or len(args) > 1
        is_empty_cache = isinstance(slots_in_cache, int) and slots_in_cache == 0
        may_be_packed = has_positions and (cache is None or is_empty_cache)

        # Only a mask (B, K) says which slots are tokens of a row, and not which pairs may attend.
        mask = kwargs.get("attention_mask")
        token_mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        tokens = slots if mask is None else token_mask
        shortest = None
        if token_mask is not None:  # ``_count`` still reads that of the call before
            shortest = self._count(model, token_mask, slots, cache)
        self._shortest = shortest
        fewest = 0 if shortest is None else shortest.tokens()
        self.inputs = ForwardInputs(tokens, may_be_packed, fewest, {})

    def _count(self, model: Any, mask: Tensor, slots: Any, cache: Any) -> _ShortestRow | None:
        """The shortest row of a decoder's batch, where its mask shows the tokens of the cache.

        None where the mask does not, and for an encoder–decoder.

        Args:
            model: that is called.
            mask: (B, K), 1 where a slot is a token.
            slots: of the cache and the new tokens; None if they are not known.
            cache: of the call.
        """
        # A mask with slots for tokens to come would count these too.
        if not isinstance(slots, int) or mask.shape[1] != slots:
            return None
        if is_recorded(mask) or getattr(model.config, "is_encoder_decoder", False):
            return None
        # The count of this mask arrives later. Until then that of the call before stands, if this
        # call is of its next token: rows have not become shorter.
        previous, tokens_before = self._shortest, 0
        shape_before = (len(mask), slots - 1)
        if previous is not None and previous.cache() is cache and previous.shape == shape_before:
            tokens_before = previous.tokens()
        shortest = sent_later(mask.sum(-1).min())
        return _ShortestRow(weakref.ref(cache), mask.shape, shortest, tokens_before)

    def _forget(self, *_: Any) -> None:
        """After a forward pass: forget its inputs, but for results that a backward pass needs."""
        # In the backward pass gradient checkpointing computes layers again, from the same tensors.
        results = self.inputs.results if torch.is_grad_enabled() else None
        self.inputs = ForwardInputs(results=results)

    def __getstate__(self) -> dict[str, Any]:
        """Without the tensors of a batch, for copies and pickles of a model."""
        return {**self.__dict__, "inputs": NOTHING_KNOWN, "_shortest": None}


def forward_listener(model: nn.Module) -> ForwardListener:
    """The listener of a model, made by the first call."""
    owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
    known = (owner for owner in owners if isinstance(owner, ForwardListener))
    return next(known, None) or ForwardListener(model)
