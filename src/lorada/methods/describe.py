"""``describe``: describes a method in plain values; for METHODS without torch or PEFT."""

from typing import Any

from lorada.methods.lookup import method_named
from lorada.methods.method import Method, part_path


def describe(name: str) -> dict[str, Any]:
    """Describe a method and how it runs, with values that JSON can hold.

    Returns:
        ``summary``, ``formula``, ``paper``, ``source``, ``ours`` (whether it, or a method of a sum,
        is an extension of this project), ``parts`` (names), ``models`` (the kinds it has settings
        for), ``not_from_the_paper`` (kind of model → source of settings that are not
        from the paper), ``runs`` (what implements it) and ``settings`` (model → part → settings).

    Raises:
        ValueError: for an unknown method, with the nearest names.
    """
    method = method_named(name)
    settings = {**method.parts, **method.unpublished.parts}
    return {
        "summary": method.summary,
        "formula": method.formula,
        "paper": method.paper,
        "source": method.source,
        "ours": method.ours,
        "parts": method.part_names,
        "models": list(settings) or ["any"],
        "not_from_the_paper": dict.fromkeys(method.unpublished.parts, method.unpublished.source),
        "runs": _runs(method),
        "settings": {model: dict(parts) for model, parts in settings.items()},
    }


def _runs(method: Method) -> list[str]:
    """What implements a method: configs of parts, callbacks, an optimizer, training arguments."""
    found = [part_path(part) for part in method.part_names]
    if method.trainable is not None:
        which = "all parameters" if method.trainable == "." else method.trains
        found.append(f"trains {which}")
    found += [f"callback {callback.partition(':')[2]}" for callback in method.callbacks]
    if method.prepare is not None:
        found.append(f"prepared by {method.prepare.partition(':')[2]}")
    if method.optimizer is not None:
        found.append(f"optimizer {method.optimizer.partition(':')[2]}")
    return found + [f"{key}={value}" for key, value in method.arguments.items()]
