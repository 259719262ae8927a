"""The methods that the installed PEFT brings: its tuners, by the lower-case name of their type.

Any tuner that places parts in a model's layers is a method of one part, with PEFT's own defaults.
"""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lorada.methods.method import EVERY_FAMILY, Method, Settings, Unpublished, peft_configs
from lorada.methods.table import QUERY_VALUE

OUTSIDE_LAYERS = "PEFT does not place it in the model's layers"
NEEDS_TOKENS = "it trains the tokens that its config names, so it has no defaults"

# Any norm, whatever a model calls it.
_NORMS = r"(?i)(.*\.)?([^.]*norm[^.]*|ln_[^.]*)"
# The matrices of tuners that are not meant for query and value: PEFT's choice, by role.
_OTHER_TARGETS: dict[str, dict[str, list[str] | str]] = {
    "beft": {
        "llama": ["v_proj"], "roberta": ["value"], "deberta": ["value_proj"], "bart": ["v_proj"],
    },
    "ia3": {
        "llama": ["k_proj", "v_proj", "down_proj"],
        "roberta": ["key", "value", "output.dense"],
        "deberta": ["key_proj", "value_proj", "output.dense"],
        "bart": ["k_proj", "v_proj", "fc2"],
    },
    "ln_tuning": dict.fromkeys(EVERY_FAMILY, _NORMS),
}  # fmt: skip


@cache
def peft_types() -> frozenset[str]:
    """The lower-case names of the types that the installed PEFT lists.

    They are read from its source, because importing PEFT takes seconds and a misspelt name is to be
    answered at once.
    """
    package = find_spec("peft")
    assert package is not None
    assert package.origin is not None
    listed = Path(package.origin).parent / "utils" / "peft_types.py"
    types = listed.read_text("utf-8").partition("class PeftType")[2].partition("\nclass ")[0]
    found = re.findall(r"^ +([A-Z][A-Z0-9_]*) = ", types, re.MULTILINE)
    return frozenset(name.lower() for name in found)


def refusal(name: str) -> str:
    """Why a config of PEFT is no method here; empty if it is one."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    from lorada.tuners.stack.config import UNSTACKABLE

    kind = name.upper()
    tuner = {str(key.value): each for key, each in PEFT_TYPE_TO_TUNER_MAPPING.items()}.get(kind)
    if tuner is None or not issubclass(tuner, BaseTuner):
        return OUTSIDE_LAYERS
    return NEEDS_TOKENS if kind == "TRAINABLE_TOKENS" else UNSTACKABLE.get(kind, "")


def peft_names() -> list[str]:
    """The tuners of the installed PEFT that are methods."""
    return [name for name in peft_configs() if not refusal(name)]


def peft_method(name: str) -> Method:
    """The method of one tuner of PEFT."""
    if reason := refusal(name):
        raise ValueError(f"PEFT's {name} cannot be used as a method: {reason}")
    config = peft_configs()[name]
    parts = {family: {name: _settings(name, family)} for family in EVERY_FAMILY}
    where = "the layers that PEFT chooses" if name in _OTHER_TARGETS else "query and value"
    return Method(
        f"PEFT's {config.__name__.removesuffix('Config')}",
        name=name,
        formula=f"see peft.{config.__name__}",
        paper="https://huggingface.co/docs/peft",
        source="PEFT's defaults",
        unpublished=Unpublished(f"PEFT's defaults, on {where}", parts),
    )


def _settings(name: str, family: str) -> Settings:
    targets = _OTHER_TARGETS.get(name, QUERY_VALUE)[family]
    settings: Settings = {"target_modules": targets}
    if name == "ia3":
        settings["feedforward_modules"] = targets[-1:]
    if name == "frod":
        settings["progressbar"] = False
    return settings
