"""The base of all configs: their registration with PEFT, and the checks of their values."""

import json
import math
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version
from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import CONFIG_NAME

from lorada.support.files import json_text, write_atomic
from lorada.support.version import __version__

# The names of all our parameters start with LoRA's prefix: when transformers itself loads a stack,
# it inserts the adapter's name behind one prefix, the same for all parts.
PREFIX = "lora"
# The ``peft_type`` of ``LoradaConfig``.
STACK = "LORADA"

# The first line of adapter_config.json, for a reader who does not have this package.
LIBRARY = "lorada: import it before loading"
USAGE = (
    "install lorada, then `import lorada` before loading with peft; "
    "or start any program that loads it, such as lm_eval, with `lorada run`"
)
# A paragraph of every model card that lorada writes.
LAUNCH = """\
A program that you cannot change (`lm_eval`, `trl`, `transformers serve` …) loads this folder when
it is started with `lorada run` before its name."""
CARD_HEAD = "---\nlibrary_name: peft\n---\n"
# Appended to PEFT's own model card.
LOADING = """

## Loading this adapter

PEFT knows its type once lorada has been imported; without it,
loading ends in `KeyError: '{peft_type}'`.

```python
import lorada
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "path/to/this/folder")
```

{launch}
"""


class PeftTypeName(str):
    """A PEFT type that is not in PEFT's enum: a string that behaves like the enum's members."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """The string itself."""
        return super().__str__()

    def __str__(self) -> str:
        """As a member of PEFT's enum is printed; ``get_model_status`` splits it at the dot."""
        return f"PeftType.{self.value}"


def register(peft_type: str, config: type["LoradaPeftConfig"], tuner: type[BaseTuner]) -> None:
    """Register a tuner with PEFT.

    Args:
        peft_type: its name in ``adapter_config.json``, which must never change.
        config: its config class, which gets this ``peft_type``.
        tuner: its class.
    """
    config.registered_as = name = PeftTypeName(peft_type)
    PEFT_TYPE_TO_CONFIG_MAPPING[name] = config  # type: ignore[index]
    PEFT_TYPE_TO_TUNER_MAPPING[name] = tuner  # type: ignore[index]
    PEFT_TYPE_TO_PREFIX_MAPPING[name] = PREFIX  # type: ignore[index]


def known_types() -> set[str]:
    """All PEFT types that have a tuner, PEFT's and ours, as written in adapter_config.json."""
    return {str(getattr(name, "value", name)) for name in PEFT_TYPE_TO_TUNER_MAPPING}


@dataclass
class LoradaPeftConfig(PeftConfig):
    """Fields that all our configs share.

    Attributes:
        layers_to_transform: indices of the layers that get the part; None for all.
        layers_pattern: name of the list of layers that the indices count, if PEFT cannot find it.
        modules_to_save: modules trained and saved whole, such as a classification head.
        init_weights: False starts from random weights, so that a fresh adapter changes the model
            (PEFT's tests use it).
        library: the first line of adapter_config.json, for readers who do not have this package.
        usage: what to do, for the same readers.
        base_model_type: the type of the base model that the adapter was trained on, from its
            config. The adapter is refused on a model of another type, even if all shapes fit.
        lorada_version: the version that wrote the adapter. An adapter from a newer version loads
            with a warning if this version knows all its fields and values.
    """

    # Set by ``register``. It has no annotation, since a field would be saved.
    registered_as = PeftTypeName()

    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    init_weights: bool = field(default=True)
    library: str = field(default=LIBRARY)
    usage: str = field(default=USAGE)
    base_model_type: str | None = field(default=None)
    lorada_version: str = field(default=__version__)

    def __new__(cls, *args: Any, **kwargs: Any) -> "LoradaPeftConfig":
        """Refuse unknown fields from a newer version; PEFT drops them before ``__init__``."""
        unknown = sorted(kwargs.keys() - cls.__dataclass_fields__.keys())
        if unknown and (text := newer_version(kwargs.get("lorada_version"))):
            name = unknown[0]
            raise ValueError(f"{cls.__name__} does not know {name}={kwargs[name]!r} ({text})")
        made: LoradaPeftConfig = super().__new__(cls)
        return made

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = self.registered_as
        targets = getattr(self, "target_modules", None)
        if isinstance(targets, set | tuple):
            self.__dict__["target_modules"] = sorted(targets)  # not a field of this class
        _refuse_bad_patterns(self)
        refuse_no_layers(self)
        if text := newer_version(self.lorada_version):
            warnings.warn(f"{type(self).__name__} was {text}", stacklevel=2)

    @property
    def starts_as_base(self) -> bool:
        """Whether a new adapter does not change the outputs of the base model."""
        return self.init_weights

    @property
    def mergeable(self) -> bool:
        """Whether a trained adapter can be merged into the weights of the base model."""
        return not PEFT_TYPE_TO_TUNER_MAPPING[self.registered_as].not_mergeable

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON-ready data, with the version of this package."""
        return {**super().to_dict(), "lorada_version": __version__}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json, and say in the model card how to load the adapter."""
        super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory) / CONFIG_NAME
        data = json.loads(path.read_text(encoding="utf-8"))
        write_atomic(path, json_text({"library": LIBRARY, **data}))
        card = Path(save_directory) / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else CARD_HEAD
        if "import lorada" not in text:
            loading = LOADING.format(peft_type=self.registered_as.value, launch=LAUNCH)
            card.write_text(text.rstrip() + loading, encoding="utf-8")


# Adapters that were saved by a newer version of this package.


def newer_version(version: Any) -> str:
    """The message about an adapter from a newer ``lorada_version``; empty for any other."""
    try:
        newer = version is not None and Version(str(version)) > Version(__version__)
    except InvalidVersion:
        raise ValueError(
            f"lorada_version={version!r} is not a version such as {__version__}"
        ) from None
    text = f"saved by lorada {version}, this is {__version__}: install a newer lorada"
    return text if newer else ""


def saved_by(config: Any) -> str:
    """The end of an error about a config, which names a newer version that wrote it, if any."""
    text = newer_version(getattr(config, "lorada_version", None))
    return f" ({text})" if text else ""


# Checks of values. Each error names the field and the value.


def require_positive(config: object, *names: str) -> None:
    """Refuse values that are not numbers above zero."""
    _require(config, names, "number", int | float)


def require_count(config: object, *names: str) -> None:
    """Refuse values that are not whole numbers above zero."""
    _require(config, names, "whole number", int)


def _require(config: object, names: tuple[str, ...], kind: str, types: Any) -> None:
    for name in names:
        value: Any = getattr(config, name)
        number = isinstance(value, types) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r} must be a {kind} above 0{saved_by(config)}")


def require_rate(config: object, name: str) -> None:
    """Refuse a dropout rate outside of [0, 1)."""
    value: Any = getattr(config, name)
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value!r} must lie in [0, 1)")


def require_choice(config: object, name: str, choices: tuple[Any, ...]) -> None:
    """Refuse a value that is not one of ``choices``."""
    value = getattr(config, name)
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}={value!r} is not one of {listed}{saved_by(config)}")


def refuse_no_layers(config: object) -> None:
    """Refuse an empty list of layers, which for PEFT means all layers."""
    if getattr(config, "layers_to_transform", None) in ([], ()):
        raise ValueError("layers_to_transform=[] names no layer: leave it out for all layers")


def _refuse_bad_patterns(config: object) -> None:
    for name in ("target_modules", "exclude_modules"):
        value = getattr(config, name, None)
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{name}={value!r} is no regular expression: {error}") from None
