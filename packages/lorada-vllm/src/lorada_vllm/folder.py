"""Reads a folder that `lorada export` wrote, and refuses by name what cannot be served.

Everything is refused while vLLM reads config.json, before an engine starts. Only the names of the
adapter's tensors are read then; ``adapter_tensors`` reads the tensors, once the model is there.
"""

import json
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from lorada.training.models.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_config,
    adapter_weights,
)
from lorada.tuners.bottleneck.bottleneck import BottleneckConfig
from lorada.tuners.lmam import LmamConfig
from lorada_vllm.places import PLACEMENTS, PLACES
from lorada_vllm.refusal import refuse

# The class of the base in transformers → our class for vLLM, in ``models.py``.
MODELS = {
    "LlamaForCausalLM": "LoradaLlamaForCausalLM",
    "MistralForCausalLM": "LoradaMistralForCausalLM",
    "Qwen2ForCausalLM": "LoradaQwen2ForCausalLM",
    "Qwen3ForCausalLM": "LoradaQwen3ForCausalLM",
}
ABLATIONS = (None, "softmax", "full_rank", "no_position")
MAP_CHILD = "self_attn.lmam"
# Names of the adapter's tensors; those of the base never start with the first word.
PREFIX = "base_model."
_TENSOR = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(.+)\.(lora_\w+)")
ELSEWHERE = "use `lorada run transformers serve`"


def base_config(config: dict[str, Any], folder: str | None) -> dict[str, Any]:
    """The config of the base with our class for vLLM, from a marked config.json.

    Refuses what cannot be served. The config gets ``lorada``, the settings of the parts: vLLM keeps
    compiled graphs by a hash of the config, and another adapter may need another graph.
    """
    classes = config.get("base_architectures") or ["unknown"]
    if classes[0] not in MODELS:
        refuse(f"{classes[0]} is not served, only {', '.join(MODELS)}: {ELSEWHERE}")
    path = Path(folder or "")
    if folder is None or not path.is_dir():
        refuse(f"{folder} is not a local folder: download it, then serve the folder")
    try:
        parts = adapter_parts(path)
        names = _tensor_names(path)
    except ValueError as error:
        refuse(str(error))
    for part in parts:
        _refuse_part(part, config)
    if sum(isinstance(part, BottleneckConfig) for part in parts) > 1:
        refuse(f"several bottleneck parts in one stack are not served: {ELSEWHERE}")
    for name in names:
        split(name)
    saved = json.loads((path / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return {**config, "base_architectures": [MODELS[classes[0]]], "lorada": saved}


def adapter_parts(folder: Path) -> list[Any]:
    """The configs of the parts of an adapter.

    Raises:
        ValueError: if the folder has no readable adapter.
    """
    config = adapter_config(folder)
    return list(getattr(config, "parts", [config]))


def adapter_tensors(folder: Path) -> dict[tuple[int, str], dict[str, Tensor]]:
    """The tensors of an adapter by layer and child, each by its own name."""
    found: dict[tuple[int, str], dict[str, Tensor]] = {}
    for name, tensor in adapter_weights(folder).items():
        layer, child, own = split(name)
        found.setdefault((layer, child), {})[own] = tensor
    return found


def split(name: str) -> tuple[int, str, str]:
    """Layer, child and own name of a tensor; refuses one that nothing here would use."""
    match = _TENSOR.fullmatch(name)
    if match is None or match[2] not in (MAP_CHILD, *PLACES):
        refuse(f"the adapter's tensor {name} is not served: {ELSEWHERE}")
    return int(match[1]), match[2], match[3]


def _tensor_names(folder: Path) -> list[str]:
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise ValueError(f"{folder} has no {ADAPTER_WEIGHTS}")
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except Exception as error:  # safetensors has an exception of its own
        raise ValueError(f"{path} is no file of tensors: {error}") from error


def _refuse_part(part: Any, config: dict[str, Any]) -> None:
    if isinstance(part, LmamConfig):
        _refuse_map(part, config)
    elif isinstance(part, BottleneckConfig):
        if part.placement not in PLACEMENTS:
            refuse(
                f"a bottleneck with placement={part.placement!r} is not served, only "
                f"{', '.join(PLACEMENTS)}: {ELSEWHERE}"
            )
    else:
        kind = getattr(part.peft_type, "value", part.peft_type)
        refuse(f"a part of type {kind} is not served, only LMAM and BOTTLENECK: {ELSEWHERE}")


def _refuse_map(part: LmamConfig, config: dict[str, Any]) -> None:
    if part.align != "start":
        refuse(
            f"a map with align={part.align!r} is not served, only 'start', as each new token would "
            f"move it: {ELSEWHERE}"
        )
    if part.ablation not in ABLATIONS:
        refuse(
            f"a map with ablation={part.ablation!r} is not served, only "
            f"{', '.join(str(each) for each in ABLATIONS)}: {ELSEWHERE}"
        )
    window = config.get("sliding_window")
    if window and config.get("use_sliding_window", True) and window < part.length:
        refuse(
            f"a map of length={part.length} is longer than the sliding_window={window} of the "
            f"base, which is not served: {ELSEWHERE}"
        )
