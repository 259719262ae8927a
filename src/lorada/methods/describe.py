"""What a method is, in words: names, parts, settings. It needs neither torch nor PEFT."""

from typing import Any

from lorada.methods.method import PARTS, Method, Settings
from lorada.methods.table import MAP, METHODS
from lorada.methods.unpublished_settings import ELSEWHERE, Elsewhere
from lorada.support.errors import unknown


def part_names(name: str) -> list[str]:
    """The parts of a method, in the order in which they are stacked."""
    method, plus_map = method_named(name)
    names = list(next(iter(method.parts.values()), {}))
    return (["lmam"] if plus_map else []) + names


def method_named(name: str) -> tuple[Method, bool]:
    """An entry of METHODS, and whether a map goes on top (``NAME+lmam``).

    Raises:
        ValueError: for an unknown method, with the nearest names.
    """
    plain = name.removesuffix("+lmam")
    if plain not in METHODS:
        raise unknown("method", name, METHODS)
    method, plus_map = METHODS[plain], name != plain
    if plus_map and (not method.parts or "lmam" in next(iter(method.parts.values()))):
        raise ValueError(f"unknown method {name!r}: {plain} cannot take a map on top")
    return method, plus_map


def describe(name: str) -> dict[str, Any]:
    """What a method is and how it runs, in words that JSON can hold.

    Returns:
        ``summary``, ``formula``, ``paper``, ``source``, ``parts`` (names), ``models`` (the kinds it
        has settings for), ``not_from_the_paper`` (those of them whose settings are not, with where
        they come from), ``runs`` (what carries it out) and ``settings`` (by model and part).

    Raises:
        ValueError: for an unknown method, with the nearest names.
    """
    method, plus_map = method_named(name)
    ours = ELSEWHERE.get(name.removesuffix("+lmam"), Elsewhere("", {}))
    columns = [*method.parts.items(), *ours.columns.items()]
    settings: dict[str, dict[str, Settings]] = {model: dict(parts) for model, parts in columns}
    summary, formula = method.summary, method.formula
    if plus_map:
        summary, formula = f"{summary}, with the map", f"{METHODS['lmam'].formula}; {formula}"
        settings = {model: {"lmam": MAP, **parts} for model, parts in settings.items()}
    return {
        "summary": summary,
        "formula": formula,
        "paper": method.paper,
        "source": method.source,
        "parts": part_names(name),
        "models": list(settings) or ["any"],
        "not_from_the_paper": dict.fromkeys(ours.columns, ours.source),
        "runs": _runs(name, method),
        "settings": settings,
    }


def _runs(name: str, method: Method) -> list[str]:
    """What carries a method out: the configs of its parts, and whatever else it brings."""
    found = [PARTS[part].replace(":", ".").replace(".tuners", "") for part in part_names(name)]
    if method.trainable is not None:
        which = "all parameters" if method.trainable == "." else method.trains
        found.append(f"trains {which}")
    found += [f"callback {callback.partition(':')[2]}" for callback in method.callbacks]
    if method.prepare is not None:
        found.append(f"prepared by {method.prepare.partition(':')[2]}")
    if method.optimizer is not None:
        found.append(f"optimizer {method.optimizer.partition(':')[2]}")
    return found + [f"{key}={value}" for key, value in method.arguments.items()]
