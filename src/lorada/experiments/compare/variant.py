"""``Variant``: a method with settings of its parts, as ``--methods`` names it."""

from dataclasses import dataclass
from typing import Any

from lorada.methods.lookup import method_named
from lorada.methods.method import Settings
from lorada.methods.overrides import part_overrides
from lorada.runs.plain_yaml import read_yaml

BEFORE = ":"  # stands before each setting
SETTING = "NAME:part.setting=value"


@dataclass(frozen=True)
class Variant:
    """A method with settings of its parts.

    Attributes:
        method: name of ``method_named``.
        parts: part → settings; empty for a method as it is.
    """

    method: str
    parts: dict[str, Settings]

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Read ``lora``, ``lora+lmam:lora.r=1`` or ``lmam:rank=2:ablation=softmax``.

        Raises:
            ValueError: for an unknown method, a setting that no part of it has, or a value of
                another type.
        """
        name, *settings = text.split(BEFORE)
        method = method_named(name)
        given: dict[str, Any] = {}
        for setting in settings:
            key, found, value = setting.partition("=")
            part, dot, inner = key.partition(".")
            if not (found and key and value):
                raise ValueError(f"{text}: {setting!r} is not a setting: write {SETTING}")
            if dot and part not in method.part_names:
                known = ", ".join(method.part_names) or "none"
                raise ValueError(f"{text}: {name} has no part {part}, only {known}")
            loaded = read_yaml(value, f"{text}: {setting}")
            if dot:
                given.setdefault(part, {})[inner] = loaded
            else:
                given[key] = loaded
        try:
            parts = part_overrides(method.part_names, given)
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from error
        return cls(name, {part: values for part, values in parts.items() if values})
