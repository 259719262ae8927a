"""``LoradaConfig(parts=[…])``: any number of PEFT configs, ours or PEFT's, as one adapter."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner

from lorada.support.error_messages import unknown_name
from lorada.support.models import published_name
from lorada.tuners.base.part_config import UNKNOWN_REMEDY, LoradaPeftConfig, is_known
from lorada.tuners.stack.trial_merge import is_mergeable

# The types of PEFT's tuners that place parts in layers but cannot be in a stack, and why.
UNSTACKABLE = {
    "POLY": "it needs the number of each row's task in every call of the model",
    "SHADOW": "it trains a second model beside the base",
    "XLORA": "it mixes adapters that were trained before",
}
# Fields of any config that a stack shares with its one part.
KEPT = ("task_type", "inference_mode", "base_model_name_or_path", "revision", "modules_to_save")


@dataclass
class LoradaConfig(LoradaPeftConfig):
    """A stack of parts that is one adapter: one config file, one safetensors file.

    Attributes:
        parts: PEFT configs, or their dictionaries as in adapter_config.json. Options of the stack
            itself (``layers_to_transform``, ``modules_to_save``, ``init_weights``,
            ``inference_mode``) hold for every part that does not set them.
    """

    parts: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Turn dictionaries of parts into configs, copied from the caller's.

        Raises:
            ValueError: without a part, or for one that cannot be in a stack.
        """
        super().__post_init__()
        if not self.parts:
            raise ValueError("LoradaConfig needs at least one part, such as LmamConfig()")
        self.parts = [_as_config(part, self) for part in self.parts]
        for part in self.parts:
            _refuse_unstackable(part)

    @property
    def mergeable(self) -> bool:
        """Whether every part can be merged into the weights of the base model."""
        return all(map(is_mergeable, self.parts))

    @property
    def plain(self) -> PeftConfig | None:
        """The config of its one part, if that is PEFT's own; None for any other stack."""
        part = copy.copy(self.parts[0])
        if len(self.parts) > 1 or isinstance(part, LoradaPeftConfig):
            return None
        modules_to_save = {*(self.modules_to_save or [])}
        modules_to_save |= {*(getattr(part, "modules_to_save", None) or [])}
        saves_modules = "modules_to_save" in part.__dataclass_fields__
        if modules_to_save and not saves_modules:  # a config of another package: they would be lost
            return None
        # From here on the copy stands for the whole stack, so it has what the stack shares.
        for name in KEPT:
            setattr(part, name, getattr(self, name))
        if saves_modules:
            part.modules_to_save = sorted(modules_to_save) or None
        for name, value in vars(part).items():
            if isinstance(value, set):  # which has another order in each process
                setattr(part, name, sorted(value))
        return part

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json: of a single part of PEFT, as PEFT alone would, else a stack's.

        Programs without lorada then load such an adapter; ``as_stack`` reads it as a stack again.
        A packaged base is named by its id on the hub: its folder is on this machine alone.
        """
        saved = copy.copy(self)
        if self.base_model_name_or_path is not None:
            saved.base_model_name_or_path = published_name(self.base_model_name_or_path)
        plain = saved.plain
        if plain is not None:
            plain.save_pretrained(save_directory, **kwargs)
        else:
            super(LoradaConfig, saved).save_pretrained(save_directory, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON-ready data, parts included."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "parts"}
        return {**own, "parts": [_part_as_dict(part) for part in self.parts]}


def _part_as_dict(part: PeftConfig) -> dict[str, Any]:
    """A part's config as JSON-ready data."""
    data = {}
    for key, value in part.to_dict().items():
        if key != "library":  # which the stack says once
            data[key] = sorted(value) if isinstance(value, set) else value
    return data


def as_stack(adapter: str | Path | PeftConfig) -> LoradaConfig:
    """A plain PEFT adapter as a stack of one part, which stands beside any other stack.

    Nothing is written. PEFT loads the adapter's own folder by it::

        model = PeftModel.from_pretrained(base, folder, config=lorada.as_stack(folder))
        model.load_adapter("another/stack", "other")

    Onto a model that has a stack already, ``model.load_adapter(folder, "plain")`` does the same.

    Args:
        adapter: the folder or the hub id of a saved adapter, or a config.

    Raises:
        ValueError: if there is no such adapter, or PEFT does not place it in the model's layers.
    """
    config = adapter
    if not isinstance(config, PeftConfig):
        config = PeftConfig.from_pretrained(str(adapter))
    if isinstance(config, LoradaConfig):
        return config
    fields: dict[str, Any] = {name: getattr(config, name, None) for name in KEPT}
    stack = LoradaConfig(parts=[config], **fields)
    if hasattr(stack.parts[0], "modules_to_save"):
        stack.parts[0].modules_to_save = None  # they are the stack's now
    return stack


def _as_config(part: Any, stack: LoradaConfig) -> PeftConfig:
    """The config of a part of a stack, which is given as a config or a dictionary.

    Raises:
        ValueError: for anything else, and for an unknown type or setting.
    """
    if isinstance(part, PeftConfig):
        return copy.deepcopy(part)  # placing a part changes its config; the caller's must not
    if isinstance(part, dict) and "peft_type" in part:
        _refuse_unknown(part)
        return PeftConfig.from_peft_type(**{**part, "inference_mode": stack.inference_mode})
    raise ValueError(f"a part must be a PEFT config or its dictionary with peft_type, not {part!r}")


def _refuse_unknown(part: dict[str, Any]) -> None:
    """Refuse the dictionary of a part of an unknown type, or with a misspelt setting."""
    kind = part["peft_type"]
    if not is_known(kind):
        raise ValueError(
            f"peft_type={kind!r} of a part is unknown to this peft and lorada; {UNKNOWN_REMEDY}"
        )
    if part.get("peft_version") is not None:
        return  # PEFT wrote it, and warns itself of the settings of a newer PEFT
    known = PEFT_TYPE_TO_CONFIG_MAPPING[kind].__dataclass_fields__
    for name in part:
        if name not in known:
            raise unknown_name(f"setting of {kind}", str(name), known)


def _refuse_unstackable(part: PeftConfig) -> None:
    """Refuse a part that PEFT places in another way than in layers of the model."""
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(part.peft_type)
    name = type(part).__name__
    if not issubclass(tuner or object, BaseTuner) or isinstance(part, LoradaConfig):
        raise ValueError(f"{name} cannot be a part: PEFT does not place it in the model's layers")
    reason = UNSTACKABLE.get(part.peft_type)
    if reason is not None:
        raise ValueError(f"{name} cannot be a part: {reason}")
    if getattr(part, "trainable_token_indices", None) is not None:
        raise ValueError(f"trainable_token_indices of {name}: add a TrainableTokensConfig instead")
