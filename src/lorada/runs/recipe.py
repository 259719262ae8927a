"""A recipe: all settings of a run, as ``recipe.yaml`` in its folder holds them."""

import math
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer

from lorada.support.error_messages import first_problem
from lorada.support.files import write_atomic
from lorada.support.metric_names import names_in_words
from lorada.support.models import PACKAGED
from lorada.support.plain_yaml import read_yaml, write_yaml
from lorada.support.row_sources import BUILTIN, CODE, absolute_files, files_of


def refuse_unstorable(name: str, value: Any) -> None:
    """Refuse a setting that no file can hold: infinity, NaN, text that is not valid Unicode.

    Lists and dictionaries are searched too.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value} must be a finite number")
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{name}={value!a} is not UTF-8 text: type it again")
    if isinstance(value, dict):
        for key, inner in value.items():
            refuse_unstorable(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            refuse_unstorable(name, inner)


JSONL = "jsonl"  # the task of rows of one's own
REMOTE = "trust_remote_code"
AUTO: Final = "auto"  # the value of a field that the device decides
# The dtypes of a base in bfloat16 or in float16 whose weights that train are in float32.
MIXED, MIXED_FP16 = "mixed", "mixed_float16"
MOST_SEED = 2**32 - 1  # the largest that NumPy takes
SEEDS = ("seed", "data_seed")  # of TrainingArguments
RECIPE_FILE = "recipe.yaml"
# Fields that may hold the path of a local file or folder.
PATHS = ("model", "data", "eval_data", "data_dir", "from_adapter", "chat_template")
# Names of settings that are never written to a file, such as hub_token.
SECRET = re.compile(r"(token|password|secret|api_key)$", re.IGNORECASE)


class Recipe(BaseModel):
    """All settings of a run."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    method: str = Field("lora", description="a name from `lorada methods`")
    model: str = Field(description="a hub id, a folder, smollm2-135m or minilm-l6")
    task: str = Field(JSONL, description="a name from `lorada tasks`; commas between several")
    protocol: str | None = Field(None, description="how the task's rows become prompts and answers")
    train_on: str | None = Field(None, description="the name of the task's training rows")
    data_dir: str | None = Field(None, description="a local folder with the benchmarks' rows")
    data: str | None = Field(
        None, description="training rows: files or data sets of the hub, with commas between"
    )
    columns: dict[str, str] | None = Field(
        None, description="your names of fields, such as {text: review, label: sentiment}"
    )
    eval_data: str | None = Field(
        None, description="held-out rows: files in the same form, or a share of data, such as 20%"
    )
    eval_seed: int = Field(0, ge=0, description="another number draws another share")
    train_rows: int | None = Field(None, gt=0, description="how many training rows, at random")
    dev_rows: int = Field(0, ge=0, description="training rows held out for the held-out loss")
    dev_seed: int = Field(0, ge=0, description="another number holds out other rows")
    eval_rows: int | None = Field(None, gt=0, description="how many rows to score, at random")
    eval_lengths: list[Annotated[int, Field(gt=1)]] | None = Field(
        None, min_length=1, description="context lengths for perplexity; by default the protocol's"
    )
    eval_windows: int | None = Field(
        None, gt=0, description="windows of each length, evenly spread; by default all"
    )
    output: str = Field(description="folder of the run")
    from_adapter: str | None = Field(
        None, description="a run, or a saved PEFT adapter, to start from"
    )
    max_length: int = Field(512, gt=0, description="most tokens of a row; longer ones are cut")
    max_target_length: int | None = Field(None, gt=0, description="most tokens of a response")
    chat_template: str | None = Field(
        None, description="a file with the Jinja template of chats, in place of the tokenizer's own"
    )
    languages: list[str] | None = Field(
        None, min_length=2, max_length=2, description="source and target language of the tokenizer"
    )
    train_head: bool = Field(True, description="train the task head; false freezes it")
    pooling: Literal["mean", "cls"] | None = Field(
        None, description="what an encoder's head reads: mean of the tokens, or first token (cls)"
    )
    packing: bool = Field(False, description="put several training rows in a sequence")
    activation_checkpointing: Literal["off", "full", "auto"] = Field(
        "auto", description="full: compute activations again, to need less memory; auto: on a GPU, "
        "where a large model or long rows do not fit without",
    )  # fmt: skip
    early_stopping: int | None = Field(
        None, gt=0, description="stop after this many evaluations without a better held-out loss, "
        "and keep the best weights",
    )  # fmt: skip
    loss_on: Literal["response", "last", "all"] | None = Field(
        None, description="tokens that count in the loss (last: of a chat's last answer alone); by "
        "default the protocol's choice",
    )  # fmt: skip
    length_norm: Literal["tokens", "characters", "none"] | None = Field(
        None, description="what a candidate's log-probability is divided by; by default tokens"
    )
    metric: str | None = Field(None, description=names_in_words())
    max_new_tokens: int | None = Field(
        None, gt=0, description="most tokens of an answer; by default the protocol's number, or a "
        "tenth more than the longest response that was trained, at least 32",
    )  # fmt: skip
    eval_batch_size: int = Field(32, gt=0, description="rows scored at once")
    dtype: Literal[
        "auto", "mixed", "mixed_float16", "float32", "bfloat16", "float16", "float64"
    ] = Field(
        AUTO, description="of the base; mixed: bfloat16, and float32 where it trains; "
        "mixed_float16: float16 there; auto: the one that a GPU computes in if the checkpoint has "
        "16 bits, else float32",
    )  # fmt: skip
    quantization: Literal["nf4", "int8"] | None = Field(
        None, description="keep the base's weights in 4 or 8 bits; an adapter trains on it"
    )
    attn_implementation: str | None = Field(
        None, description="attention: sdpa, eager, flash_attention_2 or flex_attention"
    )
    device_map: Literal["auto", "balanced", "sequential"] | None = Field(
        None, description="spread the base's layers over several accelerators, and run them in turn"
    )
    rope_factor: float | None = Field(
        None, gt=1, description="stretch the context by this factor, by scaling rotary positions"
    )
    trust_remote_code: bool = Field(False, description="run code from the model's repository")
    parts: dict[str, dict[str, Any]] = Field(
        {}, description="settings of the method's parts, by part"
    )
    training: dict[str, Any] = Field({}, description="settings of transformers' TrainingArguments")

    @property
    def tasks(self) -> list[str]:
        """The names in ``task``."""
        return [name.strip() for name in self.task.split(",")]

    @property
    def scores_rows(self) -> bool:
        """Whether it names rows to score the run on."""
        return self.task != JSONL or self.eval_data is not None

    @property
    def base_dtype(self) -> str:
        """The dtype that the base is loaded in, by torch's name."""
        return {MIXED: "bfloat16", MIXED_FP16: "float16"}.get(self.dtype, self.dtype)

    @property
    def mixed(self) -> bool:
        """Whether what trains is in float32 beside a base in 16 bits."""
        return self.dtype in (MIXED, MIXED_FP16)

    def local_paths(self) -> list[tuple[str, Path]]:
        """The fields that name files and folders of this machine, and where these are."""
        paths = []
        for field in PATHS:
            for name in files_of(getattr(self, field) or ""):
                if not name or name.startswith(BUILTIN) or not Path(name).exists():
                    continue
                # A model may have the name of a file or folder that is not the model.
                if field == "model" and (name in PACKAGED or not Path(name).is_dir()):
                    continue
                paths.append((field, Path(name).absolute()))
        return paths

    def with_absolute_paths(self) -> "Recipe":
        """The same recipe, with the paths of existing files made absolute."""
        fields = {field for field, _ in self.local_paths()}
        absolute = {field: absolute_files(getattr(self, field)) for field in fields}
        if self.metric is not None and CODE in self.metric:
            absolute["metric"] = os.path.abspath(self.metric)
        return self.model_copy(update=absolute)

    @field_serializer("training")
    def _without_secrets(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings without tokens and passwords; a resumed run must be given them again."""
        kept_settings = {}
        for name, value in settings.items():
            if not SECRET.search(name):
                is_group = isinstance(value, dict)
                kept_settings[name] = self._without_secrets(value) if is_group else value
        return kept_settings

    def save(self, folder: Path) -> None:
        """Write the recipe into a run folder."""
        write_atomic(folder / RECIPE_FILE, write_yaml(self.model_dump()))


def builtin_recipes() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    folder = Path(str(files("lorada"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def refuse_seed(name: str, seed: Any) -> None:
    """Refuse a seed that the libraries' random numbers cannot start from; None is not given."""
    if seed is None:
        return
    is_whole = isinstance(seed, int) and not isinstance(seed, bool)
    if not is_whole or not 0 <= seed <= MOST_SEED:
        raise ValueError(f"{name}{seed!r} must be a whole number from 0 to {MOST_SEED}")


def recipe_of(values: dict[str, Any]) -> Recipe:
    """Make a recipe of these fields; refuse what is missing, mistyped, or cannot be stored."""
    try:
        recipe = Recipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name, wrong = first_problem(error)
        if first["type"] == "missing":
            raise ValueError(f"the recipe has no {name}: pass --{name} or {name}=…") from error
        raise ValueError(f"{name}={first['input']!r}: {wrong}") from error
    for name, value in recipe:
        # A setting of TrainingArguments or of a part is called by its own name.
        settings = value if isinstance(value, dict) else {name: value}
        for key, setting in settings.items():
            refuse_unstorable(key, setting)
    return recipe


def saved_recipe(path: Path, *, trust_remote_code: bool = False) -> Recipe:
    """The recipe in a run's folder; the caller, not the file, decides about remote code."""
    return recipe_of({**settings_in(path), REMOTE: trust_remote_code})


def settings_in(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ValueError: for a file that is not UTF-8, not YAML, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not YAML: it is not UTF-8 (byte {error.start})") from error
    data = read_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ValueError(f"{path} must be a mapping of keys to values")
    return data
