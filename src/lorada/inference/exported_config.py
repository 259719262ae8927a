"""The model type ``lorada``: stops programs without lorada from reading a base without its adapter.

``adapter_config.json`` stops only programs that look for it. transformers without peft does not,
and vLLM does not where the weights are in several files: both would use the base alone and say
nothing. So an exported folder with an adapter has ``"model_type": "lorada"`` in its config.json,
which every program without lorada refuses. `import lorada` has this file imported from the middle
of transformers, so it imports no other module of lorada, and neither torch nor peft.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

MODEL_TYPE = "lorada"
NOTE = (
    "This folder holds a base and an adapter of lorada: install lorada, then `import lorada` "
    "before loading it, or start the program that loads it with `lorada run`."
)
# Keys of a marked config.json that keep what the mark replaces.
BASE_TYPE, BASE_CLASSES = "base_model_type", "base_architectures"
# Programs that read config and weights by themselves, and no adapter of this kind.
ENGINES = ("vllm", "sglang")
# Engine → what its plugin makes of a marked config and of the folder, so that it serves both.
READERS: dict[str, Callable[[dict[str, Any], str | None], dict[str, Any]]] = {}


class ExportedConfig(PreTrainedConfig):
    """Reads a marked config.json; what it returns is the config of the base."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config of the base; refused in an engine that would read the base alone."""
        config = {key: value for key, value in config_dict.items() if key != "lorada"}
        for engine in ENGINES:
            if engine in sys.modules:
                folder = kwargs.get("name_or_path")
                if engine not in READERS:
                    raise ValueError(
                        f"{engine} would serve this folder without its lorada adapter: install "
                        "lorada-vllm for vLLM, use `lorada run transformers serve`, or export a "
                        "run of a method that can be merged"
                    )
                config = READERS[engine](config, None if folder is None else str(folder))
        config["model_type"] = config.pop(BASE_TYPE)
        config["architectures"] = config.pop(BASE_CLASSES, None)
        return CONFIG_MAPPING[config["model_type"]].from_dict(config, **kwargs)


def mark(folder: Path) -> None:
    """Mark the config.json of a model folder; not that of a model with code of its own."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if "auto_map" in config or config.get("model_type") not in CONFIG_MAPPING:
        return
    config[BASE_TYPE], config[BASE_CLASSES] = config["model_type"], config.get("architectures")
    marked = {**config, "model_type": MODEL_TYPE, "architectures": ["Lorada"], "lorada": NOTE}
    path.write_text(json.dumps(marked, indent=2, sort_keys=True) + "\n", encoding="utf-8")


CONFIG_MAPPING.register(MODEL_TYPE, ExportedConfig, exist_ok=True)
