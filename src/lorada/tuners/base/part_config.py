"""The base of all configs: their registration with PEFT, and the checks of their values."""

import json
import re
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import CONFIG_NAME
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from lorada.support.files import json_text, write_atomic
from lorada.support.outside_packages import import_all_allowed
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
# What to do where a file names a type that has no tuner.
UNKNOWN_REMEDY = (
    "upgrade them, or name the package that registers it, as `lorada --package NAME …`, if you "
    "trust it"
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
    """Register a tuner with PEFT; ``peft_type`` is its name in files and must never change."""
    config.registered_as = name = PeftTypeName(peft_type)
    PEFT_TYPE_TO_CONFIG_MAPPING[name] = config  # type: ignore[index]
    PEFT_TYPE_TO_TUNER_MAPPING[name] = tuner  # type: ignore[index]
    PEFT_TYPE_TO_PREFIX_MAPPING[name] = PREFIX  # type: ignore[index]


def known_types() -> set[str]:
    """All PEFT types that have a tuner, PEFT's and ours, as written in adapter_config.json."""
    return {str(getattr(name, "value", name)) for name in PEFT_TYPE_TO_TUNER_MAPPING}


def is_known(kind: Any) -> bool:
    """Whether a ``peft_type`` has a tuner; those of allowed packages are imported to find out."""
    if not isinstance(kind, str):
        return False
    if kind not in known_types():
        import_all_allowed()
    return kind in known_types()


@dataclass
class LoradaPeftConfig(PeftConfig):
    """Fields that all our configs share.

    Attributes:
        layers_to_transform: indices of the layers that get the part; None for all.
        modules_to_save: modules trained and saved whole, such as a classification head.
        init_weights: False starts from random weights, so that a fresh adapter changes the model
            (PEFT's tests use it).
        library: the first line of adapter_config.json, for readers who do not have this package.
        usage: what to do, for the same readers.
        base_model_type: the type of the base model that the adapter was trained on, from its
            config. lorada's commands refuse the adapter on a model of another type, even if all
            shapes fit.
        lorada_version: the version that wrote the adapter.
    """

    # Set by ``register``. It has no annotation, since a field would be saved.
    registered_as = PeftTypeName()

    layers_to_transform: list[int] | int | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    init_weights: bool = field(default=True)
    library: str = field(default=LIBRARY)
    usage: str = field(default=USAGE)
    base_model_type: str | None = field(default=None)
    lorada_version: str = field(default=__version__)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = self.registered_as
        self.lorada_version = __version__  # which writes it, whichever wrote what was loaded
        targets = getattr(self, "target_modules", None)
        if isinstance(targets, set | tuple):
            self.__dict__["target_modules"] = sorted(targets)  # not a field of this class
        _refuse_bad_patterns(self)
        refuse_layers(self)
        check_values(self)

    @property
    def mergeable(self) -> bool:
        """Whether a trained adapter can be merged into the weights of the base model."""
        return not PEFT_TYPE_TO_TUNER_MAPPING[self.registered_as].not_mergeable

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


# Checks of values: the types of a config's own fields say which it takes.

Count = Annotated[int, Field(gt=0)]
Number = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, lt=1)]  # of dropout
# Fields that are read in several forms.
ANY_FORM = ("target_modules", "exclude_modules", "stacks", "parts")


@cache
def _type_adapters(cls: Any) -> dict[str, TypeAdapter[Any]]:
    """What reads the values of a config's own fields, by name."""
    types = get_type_hints(cls, include_extras=True)
    unchecked = LoradaPeftConfig.__dataclass_fields__.keys() | set(ANY_FORM)
    # Strict: "3" is no number, and a bool is none.
    strict = ConfigDict(strict=True)
    adapters: dict[str, TypeAdapter[Any]] = {}
    for own_field in fields(cls):
        if own_field.init and own_field.name not in unchecked:
            adapters[own_field.name] = TypeAdapter(types[own_field.name], config=strict)
    return adapters


def check_values(config: Any) -> None:
    """Refuse a value that the type of its field does not take, in a line with both."""
    for name, adapter in _type_adapters(type(config)).items():  # type: ignore[arg-type]
        value = getattr(config, name)
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            path = ""  # within a dictionary, as ['q_proj']
            if isinstance(value, dict):
                path = "".join(f"[{key!r}]" for key in first["loc"] if isinstance(key, str))
            raise ValueError(f"{name}={value!r}: {path}{first['msg'].lower()}") from None


def refuse_layers(config: object) -> None:
    """Refuse layers that PEFT would not read: none, which means all, or those beside a regex."""
    layers = getattr(config, "layers_to_transform", None)
    targets = getattr(config, "target_modules", None)
    if layers in ([], ()):
        raise ValueError("layers_to_transform=[] names no layer: leave it out for all layers")
    if getattr(config, "inference_mode", False):  # it is as it was saved
        return
    if layers is not None and isinstance(targets, str) and targets != "all-linear":
        raise ValueError(
            f"layers_to_transform is for a list of target_modules, not for the regex {targets!r}: "
            "name the layers in the regex"
        )


def _refuse_bad_patterns(config: object) -> None:
    """Refuse names of modules that are a text, and no regular expression."""
    for name in ("target_modules", "exclude_modules"):
        value = getattr(config, name, None)
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{name}={value!r} is no regular expression: {error}") from None
