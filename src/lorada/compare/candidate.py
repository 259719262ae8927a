"""``Candidate``: a method at one size, as the plan has it and the report shows it."""

from dataclasses import dataclass, field
from typing import Any

from lorada.support.files import file_name


@dataclass(frozen=True)
class Candidate:
    """A method at one size.

    Attributes:
        method: as in ``Comparison.methods``.
        budgets: each budget that leads to this size, as given → whether the size is above it,
            because the method has no smaller one. Empty for the method's default size.
        parts: settings of parts that give this size.
        trainable: trained parameters, without a task head.
        percent: the same in percent of the base's.
        total: parameters of the base.
        mergeable: whether all of it can be merged into the base.
        default_rate: the method's own learning rate.
        map_rate: the learning rate of the maps, if it is their own, unless ``method`` sets it
            beside other parts.
        beside: whether other parts train beside the maps.
        settings_from: where its settings come from, in words.
        reason: why it cannot be run, and then the numbers are None; None if it can.
        choices: the method with each of its settings, if it has several, of which a search chooses
            one; the rest is as in the one that trains the most.
    """

    method: str
    budgets: dict[str, bool]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    trainable: int | None = None
    percent: float | None = None
    total: int | None = None
    mergeable: bool | None = None
    default_rate: float | None = None
    map_rate: float | None = None
    beside: bool = False
    settings_from: str = ""
    reason: str | None = None
    choices: "list[Candidate]" = field(default_factory=list)

    @property
    def path(self) -> str:
        """Its folder in ``trials`` and ``runs``."""
        return f"{file_name(self.method)}/{self.trainable}"

    @property
    def name(self) -> str:
        """Its name in progress lines."""
        return f"{self.method} {self.trainable}"

    @classmethod
    def stored(cls, entry: dict[str, Any]) -> "Candidate":
        """One of ``plan.json``; ``TypeError`` for other fields."""
        return cls(**{**entry, "choices": [cls.stored(each) for each in entry.get("choices", [])]})
