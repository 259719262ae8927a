"""Finds out which base an adapter was trained on, by architecture and a fingerprint of weights.

Shapes are not enough: LLaMA, Mistral and Qwen2 models load each other's adapters.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from peft import PeftConfig
from transformers import PreTrainedConfig

from lorada.training.models.loading import model_folder

# torch's names for those of safetensors.
DTYPES = {
    "F64": "torch.float64", "F32": "torch.float32", "F16": "torch.float16",
    "BF16": "torch.bfloat16", "F8_E4M3": "torch.float8_e4m3fn", "F8_E5M2": "torch.float8_e5m2",
    "I64": "torch.int64", "I32": "torch.int32", "I16": "torch.int16", "I8": "torch.int8",
    "U64": "torch.uint64", "U32": "torch.uint32", "U16": "torch.uint16", "U8": "torch.uint8",
    "BOOL": "torch.bool",
}  # fmt: skip
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


def refuse_other_type(before: str | None, place: Path, model_config: PreTrainedConfig) -> None:
    """Refuse weights in ``place`` that were trained on a model of another type; None is unknown."""
    now = model_config.model_type
    if before not in (None, now):
        raise ValueError(
            f"{place} was trained on a {before} model and does not belong on a {now} model: give "
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
    lines = [line for path in sorted(folder.glob("*.safetensors")) for line in _sampled(path)]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() if lines else None


def _sampled(path: Path) -> Iterator[str]:
    """A line for each tensor of a file in the format of safetensors.

    The numbers are read by their places in the file. Mapped into memory, as safetensors reads them,
    much of the file would count as this process's memory.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        tensors = json.loads(file.read(length))
        tensors.pop("__metadata__", None)
        for name, tensor in tensors.items():
            shape, (begin, end) = tuple(tensor["shape"]), tensor["data_offsets"]
            count = math.prod(shape)
            step, width = max(1, count // SAMPLED), (end - begin) // max(1, count)
            digest = hashlib.sha256()
            for number in range(0, count, step):
                file.seek(8 + length + begin + number * width)
                digest.update(file.read(width))
            dtype = DTYPES.get(tensor["dtype"], tensor["dtype"])
            yield f"{name} {shape} {dtype} {digest.hexdigest()}"
