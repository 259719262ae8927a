"""What a model's forward is told of its tokens and does not pass on to attention.

One pair of hooks on the model listens for all its layers.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Told:
    """What the running forward of a model was told.

    Attributes:
        seen: the tokens so far, for windowed layers: their 2-D mask, or their number.
        packable: whether sequences may be packed into a row, told by their positions alone.
        windowed: whether a layer asks for ``seen``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.seen: Tensor | int | None = None
        self.packable = True
        self.windowed = False
        self._layers = 0
        self._guarded: list[tuple[Any, Any]] = []
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._look, with_kwargs=True),
            model.register_forward_hook(self._forget, always_call=True),
        ]

    def join(self, windowed: bool) -> None:
        """Count a layer that asks."""
        self._layers += 1
        self.windowed = self.windowed or windowed

    def guard(self, host: Any, check: Callable[[nn.Module, Any], None]) -> None:
        """Have a check run before the first module of each config, in encoder and decoder apart.

        A hook on every layer would cost each step of decoding more than the map does.
        """
        side = getattr(host, "is_decoder", None)  # BART's encoder and decoder share a config
        if not any(config is host.config and known == side for config, known in self._guarded):
            self._guarded.append((host.config, side))
            self._handles.append(host.register_forward_pre_hook(check))

    def remove(self) -> None:
        """One layer asks no more; with the last one the hooks go."""
        self._layers -= 1
        if self._layers == 0:
            for handle in self._handles:
                handle.remove()

    def _look(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        mask = kwargs.get("attention_mask")
        # transformers calls it cache now, and still takes the old name.
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        # Positions that the model makes itself do not start anew, nor do those behind tokens.
        given = kwargs.get("position_ids") is not None or len(args) > 1
        self.packable = given and (cache is None or _is_empty(cache))
        if not self.windowed:
            return
        if isinstance(mask, Tensor) and mask.dim() == 2:
            self.seen = mask
        elif cache is not None and mask is None:
            embeds = kwargs.get("inputs_embeds")
            ids = args[0] if args else kwargs.get("input_ids")
            new = ids if ids is not None else embeds
            self.seen = None if new is None else cache.get_seq_length() + new.shape[1]

    def _forget(self, *_: Any) -> None:
        self.seen, self.packable = None, True


def told_to(model: nn.Module) -> Told:
    """The one that listens to a model, from its first layer that asks on."""
    owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Told)), None) or Told(model)


def _is_empty(cache: Any) -> bool:
    """Whether it shows on the host that no token is in a cache; a paged one says nothing of it."""
    count = getattr(cache, "get_seq_length", None)
    length = None if count is None else count()
    return isinstance(length, int) and length == 0
