"""``Variant``: a method with settings of its parts, as ``--methods`` names it."""

from dataclasses import dataclass

from lorada.methods.lookup import method_named
from lorada.methods.method import Settings
from lorada.methods.overrides import checked, owner_of
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
            ValueError: for an unknown method, a setting that no part of it has or that is given
                twice, or a value of another type.
        """
        name, *settings = text.split(BEFORE)
        method = method_named(name)
        parts: dict[str, Settings] = {}
        for setting in settings:
            key, found, value = setting.partition("=")
            if not (found and key and value):
                raise ValueError(f"{text}: {setting!r} is not a setting: write {SETTING}")
            part, dot, inner = key.partition(".")
            if dot and part not in method.part_names:
                known = ", ".join(method.part_names) or "none"
                raise ValueError(f"{text}: {name} has no part {part}, only {known}")
            loaded = read_yaml(value, f"{text}: {setting}")
            try:
                if not dot:
                    part, inner = owner_of(key, method.part_names, also=method.part_names), key
                own = parts.setdefault(part, {})
                if inner in own:
                    raise ValueError(f"{part}.{inner} is given twice: leave one of them out")
                own[inner] = checked(part, inner, loaded)
            except ValueError as error:
                raise ValueError(f"{text}: {error}") from error
        return cls(name, parts)
