"""Packages of other authors that bring methods: which may be imported, and what they bring.

To import a package runs its code. So one is imported only if the user names it on the command line
(as a method, ``gated:gate``, or with ``--package``), has imported it already, or has installed it
with an entry point of the group ``lorada.methods``. What a recipe or a saved adapter names does not
count: its folder may come from somebody else.
"""

import os
import re
import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

GROUP = "lorada.methods"
# The packages that the user has named, with commas between; processes of a command inherit it.
ALLOWED = "LORADA_PACKAGES"
OBJECT = ":"  # between a module and what it brings, as in ``gated:gate``
OUTSIDE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
PAGE = "docs/guides/your-method.md"


@cache
def installed_methods() -> dict[str, EntryPoint]:
    """The methods that installed packages bring, by name; nothing of them is imported."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def is_outside(name: str) -> bool:
    """Whether a method that lorada and PEFT do not have may be one of another package."""
    return name in installed_methods() or bool(OUTSIDE.fullmatch(name))


def allowed_packages() -> list[str]:
    """The packages that the user has named."""
    return [package for package in os.environ.get(ALLOWED, "").split(",") if package]


def package_options(method: str) -> list[str]:
    """The options by which a command may import the packages of a method, of a sum too."""
    options = []
    for summand in method.split("+"):
        if OUTSIDE.fullmatch(summand):
            options += ["--package", summand.partition(OBJECT)[0].partition(".")[0]]
    return options


def allow_packages(packages: Iterable[str]) -> None:
    """Let packages be imported, here and in the processes that this one starts."""
    names = dict.fromkeys([*allowed_packages(), *packages])
    if names:
        os.environ[ALLOWED] = ",".join(names)


def load_outside(name: str) -> Any:
    """What ``module:object``, or the name of an entry point, names.

    Raises:
        ValueError: if it may not be imported, or there is no such thing.
    """
    entry = installed_methods().get(name)
    if entry is not None:
        module, attribute = entry.module, entry.attr
    else:
        module, _, attribute = name.partition(OBJECT)
        _refuse_not_allowed(name, module)
    imported = _import(module)
    if not hasattr(imported, attribute):
        raise ValueError(f"method {name!r}: the module {module} has no {attribute!r}")
    return getattr(imported, attribute)


def import_all_allowed() -> None:
    """Import what may be imported, so that PEFT knows the tuners that it registers."""
    for package in allowed_packages():
        _import(package)
    for entry in installed_methods().values():
        _import(entry.module)


def _refuse_not_allowed(name: str, module: str) -> None:
    """Refuse a method of a package that the user has not named and no program has imported."""
    package = module.partition(".")[0]
    if package in allowed_packages() or module in sys.modules:
        return
    raise ValueError(
        f"method {name} is of the package {package}, whose code runs only if you name it: write "
        f"`lorada --package {package} …`, or import it first in a program of your own ({PAGE})"
    )


def _import(module: str) -> Any:
    """Import a module, of the folder that the command runs in if it is not installed.

    Raises:
        ValueError: if it cannot be imported.
    """
    package = module.partition(".")[0]
    if package not in sys.modules and find_spec(package) is None and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(
            f"the package {package} cannot be imported: {error}: install it, or run the command "
            "in the folder that it lies in"
        ) from error
