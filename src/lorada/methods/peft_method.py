"""``PeftMethod``: a tuner that a package of your own registers with PEFT, as a method here.

A name ``package:object`` names one, as does an entry point of the group ``lorada.methods``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from lorada.methods.rate_range import DEFAULT_RATE, RATE_RANGE
from lorada.support.outside_packages import PAGE, load_outside

NOT_SAID = "not said"


@dataclass(frozen=True)
class PeftMethod:
    """A tuner of your own as a method: what lorada cannot read from its config.

    Attributes:
        config: the config class of the tuner, which ``register_peft_method`` has made known to
            PEFT.
        size: the setting that is its size, such as ``r``: a budget of trained parameters chooses
            it. None if it has none, as IA3; it stays as it is under a budget then.
        scaled_with: settings that keep their ratio to the size, such as ``("lora_alpha",)``.
        settings: settings that differ from the config's defaults. ``target_modules`` are named as
            on LLaMA, and translated for other models; by default they are query and value.
        learning_rate: its usual one, at which a search begins; from 1e-5 to 0.1.
        summary: one line for ``lorada methods``.
        formula: what it computes, in one line.
        paper: a link.

    Raises:
        ValueError: if PEFT does not know the config's tuner, the size is left out, or a setting is
            none of the config.
    """

    config: type[Any]
    size: str | None = NOT_SAID
    scaled_with: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = DEFAULT_RATE
    summary: str = ""
    formula: str = ""
    paper: str = ""

    def __post_init__(self) -> None:
        """Check what a package says of its method.

        Raises:
            ValueError: for a config that PEFT does not know, a size that is not said, an unknown
                setting or a learning rate out of range.
        """
        name = getattr(self.config, "__name__", repr(self.config))
        if not (isinstance(self.config, type) and is_dataclass(self.config)):
            raise ValueError(f"PeftMethod takes the config class of a tuner, not {name}")
        self.part  # noqa: B018  # PEFT has to know it
        known = {setting.name for setting in fields(self.config)}
        if self.size == NOT_SAID:
            raise ValueError(
                f'PeftMethod({name}) does not say which setting is its size: add size="r", or '
                "size=None if it has none"
            )
        sizes = [] if self.size is None else [self.size]
        for setting in [*sizes, *self.scaled_with, *self.settings]:
            if setting not in known:
                raise ValueError(f"PeftMethod({name}) names {setting!r}, which is no setting of it")
        if not RATE_RANGE[0] <= self.learning_rate <= RATE_RANGE[1]:
            raise ValueError(
                f"PeftMethod({name}, learning_rate={self.learning_rate}): give one from "
                f"{RATE_RANGE[0]:g} to {RATE_RANGE[1]:g}"
            )

    @property
    def part(self) -> str:
        """The name of its part in settings: PEFT's name of its type, in lower case.

        Raises:
            ValueError: if PEFT knows no tuner with this config.
        """
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

        for peft_type, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
            if config is self.config and peft_type in PEFT_TYPE_TO_TUNER_MAPPING:
                return str(getattr(peft_type, "value", peft_type)).lower()
        raise ValueError(
            f"PEFT knows no tuner with {self.config.__name__}: call peft's register_peft_method "
            "before PeftMethod"
        )

    @property
    def size_settings(self) -> tuple[str, ...]:
        """The setting that is its size, then those that keep their ratio to it; () for no size."""
        return () if self.size is None else (self.size, *self.scaled_with)


# Part → the method that brought it. A part is looked up after its method, which is named first.
_BY_PART: dict[str, PeftMethod] = {}


def method_of_part(part: str) -> PeftMethod | None:
    """The method of another package that has brought a part; None if none has."""
    return _BY_PART.get(part)


def load_peft_method(name: str) -> PeftMethod:
    """The ``PeftMethod`` that ``package:object``, or an entry point, names.

    Raises:
        ValueError: if it may not be imported, or is something else.
    """
    method = load_outside(name)
    if not isinstance(method, PeftMethod):
        kind = getattr(method, "__name__", type(method).__name__)
        raise ValueError(
            f"method {name!r} is {kind}, which does not say its size: make it a "
            f'lorada.PeftMethod({kind}, size="r") ({PAGE})'
        )
    return method


def remember(method: PeftMethod, name: str) -> None:
    """Let the part of a method be looked up by its name.

    Raises:
        ValueError: if another method with the same part has another size.
    """
    other = _BY_PART.setdefault(method.part, method)
    if other.size_settings != method.size_settings:
        raise ValueError(
            f"method {name!r} names other settings as the size of {method.part} than another "
            "method that was loaded: let both name the same"
        )
