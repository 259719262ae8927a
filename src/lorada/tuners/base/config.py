"""The PEFT types of this package, and what every config of ours says in ``adapter_config.json``."""

import math
import re
import warnings
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner

from lorada.support.errors import unknown
from lorada.support.version import __version__
from lorada.tuners.base.newer import is_newer, newer_version, saved_by

# transformers' own loading inserts the adapter name behind this one prefix, for every part of a
# stack, so all our parameters start with the prefix that LoRA's do.
PREFIX = "lora"

USAGE = (
    "pip install lorada, then `import lorada` before loading with peft; "
    "or start any program that loads it, such as lm_eval, with `lorada run`"
)
# Stands in every model card that lorada writes.
LAUNCH = """\
A program that you cannot change (`lm_eval`, `trl`, `transformers serve` …) loads this folder when
it is started with `lorada run` before its name."""
CARD_HEAD = "---\nlibrary_name: peft\n---\n"
# What follows PEFT's own model card.
LOADING = """

## Loading this adapter

PEFT knows its type once [lorada](https://pypi.org/project/lorada/) has been imported; without it,
loading ends in `KeyError: '{peft_type}'`.

```python
import lorada
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "path/to/this/folder")
```

{launch}
"""


class LoradaType(str, Enum):  # noqa: UP042
    """Our PEFT types. Name equals value: PEFT looks types up by the plain string of a JSON file."""

    LMAM = "LMAM"
    OMOE = "OMOE"
    BOTTLENECK = "BOTTLENECK"
    PREFIX = "PREFIX"
    QUANTA = "QUANTA"
    SORA = "SORA"
    LAMDA = "LAMDA"
    LORADA = "LORADA"


def register(peft_type: LoradaType, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Enter a config and its tuner in PEFT's public tables; PEFT's helper wants its own enum."""
    PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config  # type: ignore[index]
    PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = tuner  # type: ignore[index]
    PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = PREFIX  # type: ignore[index]


def known_types() -> set[str]:
    """Every PEFT type that has a tuner, PEFT's and ours, as it stands in adapter_config.json."""
    return {str(getattr(name, "value", name)) for name in PEFT_TYPE_TO_TUNER_MAPPING}


def refuse_unknown(part: dict[str, Any], stack: PeftConfig) -> None:
    """Refuse the dictionary of a part of an unknown type, or with a misspelt setting.

    One that PEFT has written names its version. A newer version may know more settings, of which
    PEFT warns and goes on; in one that a person wrote, an unknown setting is a slip.

    Raises:
        ValueError: naming the type, or the setting with the nearest ones.
    """
    kind = part["peft_type"]
    if not isinstance(kind, str) or kind not in known_types():
        raise ValueError(
            f"peft_type={kind!r} of a part is unknown to this peft and lorada; "
            f"upgrade them, or leave the part out{saved_by(stack)}"
        )
    known = PEFT_TYPE_TO_CONFIG_MAPPING[kind].__dataclass_fields__
    for name in part if part.get("peft_version") is None else []:
        if name not in known:
            raise unknown(f"setting of {kind}", str(name), known)


@dataclass
class LoradaPeftConfig(PeftConfig):
    """Fields that all our configs share.

    Attributes:
        layers_to_transform: indices of the layers that get the part; None for all.
        layers_pattern: name of the module list that the indices count, where PEFT cannot tell.
        modules_to_save: modules trained and saved whole, such as a classification head.
        init_weights: False leaves the start random, so that a fresh adapter changes the model
            (PEFT's tests use it).
        usage: written into adapter_config.json for a reader who meets the file without this
            package.
        base_model_type: architecture of the base in a run, as its own config names it, so that the
            adapter is not put on another whose weights happen to have the same shapes.
        lorada_version: the version that wrote the adapter. One that is newer than the installed
            version loads with a warning as long as this version knows all its fields and values.

    Raises:
        ValueError: for a field that this version does not know, of an adapter from a newer one,
            or a list of no layers.
    """

    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    init_weights: bool = field(default=True)
    usage: str = field(default=USAGE)
    base_model_type: str | None = field(default=None)
    lorada_version: str = field(default=__version__)

    def __new__(cls, *args: Any, **kwargs: Any) -> "LoradaPeftConfig":
        """Refuse fields from the future here: PEFT drops them before ``__init__`` sees any."""
        unknown = sorted(kwargs.keys() - cls.__dataclass_fields__.keys())
        version = kwargs.get("lorada_version")
        if unknown and is_newer(version):
            name = unknown[0]
            raise ValueError(
                f"{cls.__name__} does not know {name}={kwargs[name]!r} ({newer_version(version)})"
            )
        made: LoradaPeftConfig = super().__new__(cls)
        return made

    def __post_init__(self) -> None:
        super().__post_init__()
        targets = getattr(self, "target_modules", None)
        if isinstance(targets, set | tuple):
            self.__dict__["target_modules"] = sorted(targets)  # of most configs, not of all
        _refuse_bad_patterns(self)
        refuse_no_layers(self)
        if text := newer_version(self.lorada_version):
            warnings.warn(f"{type(self).__name__} was {text}", stacklevel=2)

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON-ready data, as this version writes it."""
        return {**super().to_dict(), "lorada_version": __version__}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json, and into the model card beside it what must be imported."""
        super().save_pretrained(save_directory, **kwargs)
        card = Path(save_directory) / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else CARD_HEAD
        if "import lorada" not in text:
            peft_type = getattr(self.peft_type, "value", self.peft_type)
            loading = LOADING.format(peft_type=peft_type, launch=LAUNCH)
            card.write_text(text.rstrip() + loading, encoding="utf-8")


def require_positive(config: object, *names: str) -> None:
    """Refuse values that are not above zero, naming the field and the value.

    Raises:
        ValueError: for the first such field.
    """
    for name in names:
        value: Any = getattr(config, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r} must be a number above 0{saved_by(config)}")


def require_count(config: object, name: str) -> None:
    """Refuse a value that is not a whole number above zero, naming the field and the value.

    Raises:
        ValueError: for any other value.
    """
    value: Any = getattr(config, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number above 0{saved_by(config)}")


def require_rate(config: object, name: str) -> None:
    """Refuse a dropout rate outside of [0, 1), naming the field and the value.

    Raises:
        ValueError: for any other value.
    """
    value: Any = getattr(config, name)
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value!r} must lie in [0, 1)")


def _refuse_bad_patterns(config: object) -> None:
    for name in ("target_modules", "exclude_modules"):
        value = getattr(config, name, None)
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{name}={value!r} is no regular expression: {error}") from None


def refuse_no_layers(config: object) -> None:
    """Refuse an empty list of layers, which PEFT takes for all of them.

    Raises:
        ValueError: for such a list.
    """
    if getattr(config, "layers_to_transform", None) in ([], ()):
        raise ValueError("layers_to_transform=[] names no layer: leave it out for all layers")


def require_choice(config: object, name: str, choices: tuple[Any, ...]) -> None:
    """Refuse a value that is not one of ``choices``, naming them.

    Raises:
        ValueError: for any other value.
    """
    value = getattr(config, name)
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}={value!r} is not one of {listed}{saved_by(config)}")
