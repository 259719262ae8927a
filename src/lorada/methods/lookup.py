"""``method_named`` looks up a method, or a sum of methods, by its name; ``describe`` describes it.

The names of METHODS need neither torch nor PEFT.
"""

import runpy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lorada.methods.matrix_names import NAMING, SCHEMES, WRITTEN_FOR, translate_names
from lorada.methods.method import (
    EVERY_FAMILY,
    Method,
    PartsByModel,
    Settings,
    Unpublished,
    peft_configs,
)
from lorada.methods.peft_method import PeftMethod, load_peft_method, remember
from lorada.methods.provenance import MAP_DEFAULTS, PRINTED, SOURCES
from lorada.methods.table import METHODS, QUERY_VALUE, UNPUBLISHED
from lorada.support.error_messages import unknown_name
from lorada.support.outside_packages import (
    OBJECT,
    OUTSIDE,
    allow_packages,
    installed_methods,
    is_outside,
)

OUTSIDE_LAYERS = "PEFT does not place it in the model's layers"
NEEDS_TOKENS = "it trains the tokens that its config names, so it has no defaults"

# Any norm, whatever a model calls it.
_NORMS = r"(?i)(.*\.)?([^.]*norm[^.]*|ln_[^.]*)"
# The matrices of tuners that are not meant for query and value: PEFT's choice, as on LLaMA.
_OTHER_TARGETS: dict[str, list[str] | str] = {
    "beft": ["v_proj"], "ia3": ["k_proj", "v_proj", "down_proj"], "ln_tuning": _NORMS,
}  # fmt: skip


@cache
def peft_types() -> frozenset[str]:
    """The lower-case names of the types that the installed PEFT lists.

    Its one file with them is run alone: to import PEFT takes seconds, and a misspelt name is to be
    answered at once.
    """
    package = find_spec("peft")
    assert package is not None
    assert package.origin is not None
    variables = runpy.run_path(str(Path(package.origin).parent / "utils" / "peft_types.py"))
    return frozenset(kind.name.lower() for kind in variables["PeftType"])


def refusal(name: str) -> str:
    """Why a config of PEFT is no method here; empty if it is one."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    from lorada.tuners.stack.stack_config import UNSTACKABLE

    kind = name.upper()
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(kind)
    if tuner is None or not issubclass(tuner, BaseTuner):
        return OUTSIDE_LAYERS
    return NEEDS_TOKENS if kind == "TRAINABLE_TOKENS" else UNSTACKABLE.get(kind, "")


def peft_names() -> list[str]:
    """The tuners of the installed PEFT that are methods."""
    return [name for name in peft_configs() if not refusal(name)]


def peft_method(name: str) -> Method:
    """The method of one tuner of PEFT.

    Raises:
        ValueError: if PEFT and the allowed packages have no such tuner.
    """
    if reason := refusal(name):
        raise ValueError(f"PEFT's {name} cannot be used as a method: {reason}")
    config = peft_configs()[name]
    targets = _OTHER_TARGETS.get(name, QUERY_VALUE["llama"])
    settings: Settings = {"target_modules": targets}
    if name == "ia3":  # of its targets the last is in the FFN, where IA3 scales the input
        settings["feedforward_modules"] = targets[-1:]
    if name == "frod":  # PEFT draws a bar of its own while it places the part
        settings["progressbar"] = False
    parts = {family: {name: settings} for family in EVERY_FAMILY}
    where = "the layers that PEFT chooses" if name in _OTHER_TARGETS else "query and value"
    return Method(
        f"PEFT's {config.__name__.removesuffix('Config')}",
        name=name,
        formula=f"see peft.{config.__name__}",
        paper="https://huggingface.co/docs/peft",
        source="PEFT's defaults",
        unpublished=Unpublished(f"PEFT's defaults, on {where}", parts, "llama"),
    )


def as_method(method: PeftMethod, name: str) -> Method:
    """The method of a tuner of another package, by its name here; its part is known from now on."""
    remember(method, name)
    settings = dict(method.settings)
    if "target_modules" in method.config.__dataclass_fields__:
        settings.setdefault("target_modules", QUERY_VALUE["llama"])
    package = method.config.__module__.partition(".")[0]
    parts = {family: {method.part: settings} for family in EVERY_FAMILY}
    return Method(
        method.summary or f"{method.config.__name__} of {package}",
        name=name,
        formula=method.formula,
        paper=method.paper,
        source=f"the package {package}",
        unpublished=Unpublished(f"the settings of the package {package}", parts, "llama"),
    )


SUM = "+"  # between the names of several methods whose parts make one adapter


@cache
def method_named(name: str) -> Method:
    """Look up a method, and add its settings that are not from the paper.

    ``name`` is a key of ``METHODS``; the lower-case name of a tuner of the installed PEFT, such as
    ``ia3``; that of a method of another package, such as ``package:object``; or several of these
    with ``+`` between, for one adapter with the parts of each in this
    order, but for a map at the end (``lora+lmam``), which comes first.

    Raises:
        ValueError: for an unknown name, and a ``+`` without a method beside it.
    """
    names = name.split(SUM)
    if not all(summand.strip() for summand in names):
        raise ValueError(f"method {name!r} has a {SUM} without a method beside it: leave it out")
    if len(names) == 1:
        return _single_method(name)
    if names[-1] == "lmam":  # as in the paper's stacks, whose first part is the map
        names = ["lmam", *names[:-1]]
    return _sum_of(name, [_single_method(summand) for summand in names])


def _single_method(name: str) -> Method:
    """A method that is no sum.

    Raises:
        ValueError: for an unknown name.
    """
    if name in METHODS:
        method = METHODS[name]
        return replace(
            method,
            name=name,
            unpublished=UNPUBLISHED.get(name, method.unpublished),
            sources=SOURCES.get(name, method.sources),
            printed=PRINTED.get(name, method.printed),
        )
    if name in peft_types():
        return peft_method(name)  # imports PEFT, which other names do not need
    if is_outside(name) and not _is_own(name.partition(OBJECT)[0]):
        return as_method(load_peft_method(name), name)
    similar_names = get_close_matches(name, METHODS, cutoff=0.6)
    known_names = {*METHODS, *peft_types(), *installed_methods()}
    raise unknown_name("method", name, similar_names or known_names)


def split_settings(text: str) -> tuple[str, list[str]]:
    """The name of a method, and the settings behind it: ``gated:gate:temp=1`` has one.

    Both have colons, and what belongs to the name has no ``=``.
    """
    name, *rest = text.split(OBJECT)
    # Behind a method of ours or of PEFT there are settings only, so ``lmam:rank`` is a mistake.
    while rest and "=" not in rest[0] and not _is_own(name.rpartition(SUM)[2]):
        name = f"{name}{OBJECT}{rest.pop(0)}"
    return name, rest


def allow_methods(names: Iterable[str]) -> None:
    """Let the packages of methods be imported that the user has named, of sums too.

    ``names`` may have settings behind them.
    """
    for text in names:
        for summand in split_settings(text)[0].split(SUM):
            if OUTSIDE.fullmatch(summand):
                allow_packages([summand.partition(OBJECT)[0].partition(".")[0]])


def _is_own(name: str) -> bool:
    """Whether a name is that of a method of ours or of PEFT, and of no other package."""
    return name in METHODS or name in peft_types()


def _sum_of(name: str, methods: Sequence[Method]) -> Method:
    """One method with the parts of several, in their order.

    Raises:
        ValueError: for methods that cannot be added up.
    """
    for method in methods:
        if not method.part_names:
            raise ValueError(f"{name}: {method.name} has no parts, so it cannot be in a sum")
    arguments = _joined_arguments(name, methods)
    _refuse_part_twice(name, methods)
    callbacks: dict[str, None] = {}  # in order, each once
    for method in methods:
        callbacks |= dict.fromkeys(method.callbacks)
    papers = dict.fromkeys(method.paper for method in methods if method.paper)
    return Method(
        " with ".join(method.summary for method in methods),
        name=name,
        callbacks=tuple(callbacks),
        prepare=next((method.prepare for method in methods if method.prepare), None),
        freeze=next((method.freeze for method in methods if method.freeze), None),
        arguments=arguments,
        formula="; ".join(method.formula for method in methods),
        paper=" ".join(papers),
        summands=tuple(methods),
    )


def _joined_arguments(name: str, methods: Sequence[Method]) -> Settings:
    """The TrainingArguments that the methods of a sum change; two values of one are refused."""
    arguments: Settings = {}
    for method in methods:
        for key, value in method.arguments.items():
            if arguments.setdefault(key, value) != value:
                raise ValueError(
                    f"{name}: {method.name} trains with {key}={value}, another with "
                    f"{key}={arguments[key]}: leave one of them out"
                )
    return arguments


def _refuse_part_twice(name: str, methods: Sequence[Method]) -> None:
    """Refuse a sum of methods that share a part: settings name a part by its kind alone."""
    owners: dict[str, list[str]] = {}  # part → the methods that bring it
    for method in methods:
        for part in method.part_names:
            owners.setdefault(part, []).append(method.name)
    part = max(owners, key=lambda part: len(owners[part]))
    if len(owners[part]) > 1:
        raise ValueError(
            f"{name}: {' and '.join(owners[part])} each bring a {part} part: leave one of them out"
        )


def describe(name: str) -> dict[str, Any]:
    """Describe a method, with values that JSON can hold.

    Returns:
        ``summary``, ``formula``, ``when`` (to try it), ``paper``, ``parts`` (names), ``models``
        (the kinds it has settings for), ``settings_from`` (kind of model → where its settings are
        from),
        ``not_as_printed`` (kind → part → setting → its value ``here`` and in the ``paper``) and
        ``settings`` (kind → part → settings).
    """
    method = method_named(name)
    methods = method.summands or (method,)
    settings = _settings_of_all(methods)
    kinds = list(settings) or ["any"]
    not_as_printed = {}
    for kind in kinds:
        differences = _differences(methods, kind, settings.get(kind, {}))
        if differences:
            not_as_printed[kind] = differences
    return {
        "summary": method.summary,
        "formula": method.formula,
        "when": method.when,
        "paper": method.paper,
        "parts": method.part_names,
        "models": kinds,
        "settings_from": {kind: sources_of(methods, kind) for kind in kinds},
        "not_as_printed": not_as_printed,
        "settings": settings,
    }


def sources_of(methods: Sequence[Method], kind: str) -> str:
    """Where the settings of a method, or of the methods of a sum, are from."""
    return joined_sources([(method.name, method.source_of(kind)) for method in methods])


def joined_sources(sources: Sequence[tuple[str, str]]) -> str:
    """One sentence for the sources of a sum, given the name and the source of each method."""
    if len(sources) == 1:
        ((_, source),) = sources
        return source
    return "; ".join(f"{name}: {source}" for name, source in sources)


def _differences(
    methods: Sequence[Method], kind: str, settings: dict[str, Settings]
) -> dict[str, dict[str, Any]]:
    """Part → setting → its value here and in the paper, where the paper prints another."""
    differences: dict[str, dict[str, Any]] = {}
    for method in methods:
        for part, printed in method.printed.get(kind, {}).items():
            values = {**MAP_DEFAULTS, **settings[part]}
            differences[part] = {
                key: {"here": values[key], "paper": value}
                for key, value in printed.items()
                if values[key] != value
            }
    return differences


def _settings_of_all(methods: Sequence[Method]) -> PartsByModel:
    """Kind of model → part → settings of several methods, for the kinds that each of them has."""
    # A sum can be trained only on kinds of model that all of its methods have settings for.
    by_method = [_settings_by_kind(method) for method in methods]
    joined: PartsByModel = {}
    for kind in by_method[0]:
        if all(kind in settings for settings in by_method):
            joined[kind] = {}
            for settings in by_method:
                joined[kind] |= settings[kind]
    return joined


def _settings_by_kind(method: Method) -> PartsByModel:
    """Kind of model → part → settings, with the names that matrices have in that kind."""
    unpublished, home = method.unpublished.parts, method.unpublished.named_as
    if home is None:
        return {**method.parts, **unpublished}
    translated: PartsByModel = {}
    for kind, parts in unpublished.items():
        translated[kind] = {
            part: _translated(settings, home, kind) for part, settings in parts.items()
        }
    return {**method.parts, **translated}


def _translated(settings: Settings, home: str, kind: str) -> Settings:
    """Settings that name matrices as one kind of model does, for another kind."""
    translated = dict(settings)
    for key in NAMING:
        if isinstance(settings.get(key), list):
            translated[key] = translate_names(
                settings[key], SCHEMES[home], SCHEMES[WRITTEN_FOR[kind]]
            )
    return translated
