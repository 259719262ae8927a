"""Finds out which base an adapter was trained on, by architecture and a fingerprint of weights.

Shapes are not enough: LLaMA, Mistral and Qwen2 models load each other's adapters.
"""

import hashlib
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from peft import PeftConfig
from safetensors import safe_open
from transformers import PreTrainedConfig

from lorada.runs.models.loading import model_folder

SAMPLED = 64  # how many numbers of each tensor, evenly spread; training changes most of them


def base_type_of(config: PeftConfig) -> str | None:
    """The ``model_type`` of the base that a saved adapter was trained on; None if it is unknown.

    PEFT's adapters store only the name of their base. The config of that base is read if it is in a
    local folder or in the hub's cache; nothing is downloaded.
    """
    own = getattr(config, "base_model_type", None)
    name = config.base_model_name_or_path
    if own is not None or not name:
        return own
    try:
        found, _ = PreTrainedConfig.get_config_dict(name, local_files_only=True)
    except Exception:  # of any class: the base is not here, or its name is invalid
        return None
    kind = found.get("model_type")
    return kind if isinstance(kind, str) else None


def refuse_other_base(config: PeftConfig, folder: Path, model_config: PreTrainedConfig) -> None:
    """Refuse an adapter of another architecture.

    Raises:
        ValueError: naming both architectures.
    """
    before, now = base_type_of(config), model_config.model_type
    if before not in (None, now):
        raise ValueError(
            f"{folder} was trained on a {before} model and does not belong on a {now} model: give "
            "it one of the same architecture"
        )


def weights_fingerprint(model: str) -> str | None:
    """A sha256 of a model's weights; None if its files are not on this machine.

    It covers the name, shape, dtype and ``SAMPLED`` numbers of each tensor, and not the file that a
    tensor is in. A model of the hub is looked for in the hub's cache.
    """
    folder = Path(model_folder(model))
    if not folder.is_dir():
        cached = try_to_load_from_cache(model, "config.json")
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    lines = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = list(file.keys())
        for name in names:
            # Opened for each tensor: what was read counts as this process's memory until it closes.
            with safe_open(path, "pt") as file:
                tensor = file.get_tensor(name)
            step = max(1, tensor.numel() // SAMPLED)
            numbers = tensor.flatten()[::step].contiguous().view(torch.uint8)
            kind = f"{name} {tuple(tensor.shape)} {tensor.dtype}"
            lines.append(f"{kind} {hashlib.sha256(numbers.numpy().tobytes()).hexdigest()}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() if lines else None
