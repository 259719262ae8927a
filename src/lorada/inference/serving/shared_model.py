"""One base model that several threads use in turn, each with its own adapter switched on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from transformers import PreTrainedModel
from transformers.generation.continuous_batching.continuous_api import ContinuousMixin

from lorada.attention.interface import install


class SharedModel:
    """A model with all its adapters; ``base`` is the transformers model in it, which is what runs.

    Whoever runs it takes a turn. Turns are given in the order in which they were asked for, so that
    an adapter with many requests does not keep the others waiting.
    """

    def __init__(self, model: PeftModel | PreTrainedModel) -> None:
        self._whole = model
        self.base = model.get_base_model() if isinstance(model, PeftModel) else model
        install()  # also without maps: packed sequences are then computed in parts
        self._changed = threading.Condition()
        self._given = self._done = 0
        self._active: str | None = ""  # no adapter's name: the first turn always switches

    @contextmanager
    def turn(self, key: str | None) -> Iterator[None]:
        """Have the model alone in a ``with`` block, with the adapter ``key``, or None for none."""
        with self._changed:
            mine, self._given = self._given, self._given + 1
            self._changed.wait_for(lambda: self._done == mine)
        try:
            self._activate(key)
            yield
        finally:
            with self._changed:
                self._done += 1
                self._changed.notify_all()

    def _activate(self, key: str | None) -> None:
        if key == self._active or not isinstance(self._whole, PeftModel):
            return
        layers = self._whole.base_model  # learned prompts have none: the base runs without them
        if key is not None:
            self._whole.set_adapter(key, inference_mode=True)
        if isinstance(layers, BaseTuner) and None in (key, self._active):
            switch = layers.disable_adapter_layers if key is None else layers.enable_adapter_layers
            switch()
        self._active = key


class AdapterView(ContinuousMixin):  # type: ignore[misc]
    """The shared model as one adapter has it, for transformers' continuous batching to run."""

    def __init__(self, shared: SharedModel, key: str | None) -> None:
        self._shared, self._key = shared, key

    def __call__(self, **inputs: Any) -> Any:
        """One forward pass, with this adapter switched on."""
        with self._shared.turn(self._key):
            return self._shared.base(**inputs)

    def eval(self) -> "AdapterView":
        """Nothing: a loaded run is in evaluation mode."""
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shared.base, name)
