"""``method_named``: looks up a method by its name."""

from dataclasses import replace

from lorada.methods.method import Method, PartsByModel
from lorada.methods.table import MAP, METHODS
from lorada.methods.unpublished_settings import UNPUBLISHED
from lorada.support.errors import unknown_name

WITH_MAP = "+lmam"  # suffix of a method's name: the same method with a map on top


def method_named(name: str) -> Method:
    """Look up a method, and add its settings that are not from the paper.

    Args:
        name: a key of ``METHODS``, or ``NAME+lmam`` for that method with a map on top.

    Raises:
        ValueError: for an unknown name (with the nearest ones), or a method that cannot take a map.
    """
    plain = name.removesuffix(WITH_MAP)
    if plain not in METHODS:
        raise unknown_name("method", name, METHODS)
    method = METHODS[plain]
    method = replace(method, name=name, unpublished=UNPUBLISHED.get(plain, method.unpublished))
    if plain == name:
        return method
    if not method.parts or "lmam" in method.part_names:
        raise ValueError(f"unknown method {name!r}: {plain} cannot take a map on top")
    return replace(
        method,
        summary=f"{method.summary}, with the map",
        formula=f"{METHODS['lmam'].formula}; {method.formula}",
        parts=_with_map(method.parts),
        unpublished=replace(method.unpublished, parts=_with_map(method.unpublished.parts)),
    )


def _with_map(parts_by_model: PartsByModel) -> PartsByModel:
    return {model: {"lmam": MAP, **parts} for model, parts in parts_by_model.items()}
