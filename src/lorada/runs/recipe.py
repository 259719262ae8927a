"""A recipe: everything that decides a run, from a YAML file and ``key=value`` overrides.

Both are the same thing: a key sets a field of the recipe, of one part of the method
(``lmam.rank``), or of transformers' TrainingArguments (``training.learning_rate``); a bare key
does where only one of them has a field of that name.
"""

import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
)

from lorada.methods.lookup import method_named
from lorada.methods.overrides import TRAINING, checked, owner_of
from lorada.runs.plain_yaml import read_yaml, refuse_unstorable, write_yaml
from lorada.support.errors import unknown
from lorada.support.files import write_whole
from lorada.support.models import PACKAGED
from lorada.tasks import TASKS
from lorada.tasks.rows import BUILTIN, resolve

REMOTE = "trust_remote_code"
SEED = 42  # of a run that states none, as transformers has it
RECIPE_FILE = "recipe.yaml"
# Fields that may name a file or a folder of this machine.
PATHS = ("model", "data", "eval_data", "data_dir", "from_adapter")
# Settings that are never written anywhere, such as the token of the hub.
SECRET = re.compile(r"(token|password|secret|api_key)$", re.IGNORECASE)


class Recipe(BaseModel):
    """What a run is made of."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    method: str = Field("lorada_la", description="a name of `lorada methods`")
    model: str = Field(description="a hub id, a folder, smollm2-135m or minilm-l6")
    task: str = Field("jsonl", description="a name of `lorada tasks`, or several with commas")
    protocol: str | None = Field(None, description="how the task is put to the model")
    train_on: str | None = Field(None, description="training rows of the task, by name")
    data_dir: str | None = Field(None, description="local folder of the benchmarks' rows")
    data: str | None = Field(None, description="training rows: a .jsonl or .csv file")
    eval_data: str | None = Field(None, description="held-out rows, in the same form")
    train_rows: int | None = Field(None, gt=0, description="take a random part of the rows")
    dev_rows: int = Field(0, ge=0, description="training rows kept back for the held-out loss")
    eval_rows: int | None = Field(None, gt=0, description="score a random part of the rows")
    eval_lengths: list[Annotated[int, Field(gt=1)]] | None = Field(
        None, min_length=1, description="context lengths of a perplexity; by default the protocol's"
    )
    eval_windows: int | None = Field(
        None, gt=0, description="windows of each length, spread evenly; by default all"
    )
    output: str = Field(description="folder of the run")
    from_adapter: str | None = Field(None, description="a saved PEFT adapter to start from")
    max_length: int = Field(512, gt=0, description="tokens of a row; longer rows are cut")
    max_target_length: int | None = Field(
        None, gt=0, description="tokens of a response, where they have a limit of their own"
    )
    languages: list[str] | None = Field(
        None, min_length=2, max_length=2, description="from and to, of a multilingual tokenizer"
    )
    train_head: bool = Field(
        True, description="whether the head that a task puts on a model trains, or stays as drawn"
    )
    packing: bool = Field(False, description="fill sequences with several training rows each")
    loss_on: Literal["response", "all"] | None = Field(
        None, description="tokens that count; by default what the protocol says, or the response"
    )
    max_new_tokens: int | None = Field(
        None, gt=0, description="tokens generated for an answer; by default the protocol's, or 32"
    )
    eval_batch_size: int = Field(32, gt=0, description="rows generated at once")
    dtype: str = Field("float32", description="of the base: float32, bfloat16, float16 or float64")
    rope_factor: float | None = Field(
        None, gt=1, description="stretch rotary positions, for contexts so many times the model's"
    )
    trust_remote_code: bool = Field(False, description="run code that a model repository ships")
    parts: dict[str, dict[str, Any]] = Field({}, description="settings of parts, by part")
    training: dict[str, Any] = Field({}, description="settings of TrainingArguments")

    @property
    def tasks(self) -> list[str]:
        """The names in ``task``."""
        return [name.strip() for name in self.task.split(",")]

    def anywhere(self) -> "Recipe":
        """The same with the paths of what is there made absolute, to be used from any folder."""
        given = {name: getattr(self, name) for name in PATHS}
        found = {
            name: str(Path(value).absolute())
            for name, value in given.items()
            if value and Path(value).exists() and not value.startswith(BUILTIN)
        }
        if self.model in PACKAGED or not Path(self.model).is_dir():
            found.pop("model", None)
        return self.model_copy(update=found)

    @field_serializer("training")
    def _without_secrets(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What any file of a run may hold: a run that goes on is given its token anew."""
        return {
            name: self._without_secrets(value) if isinstance(value, dict) else value
            for name, value in settings.items()
            if not SECRET.search(name)
        }

    def save(self, folder: Path) -> None:
        """Write the recipe into a run folder."""
        write_whole(folder / RECIPE_FILE, write_yaml(self.model_dump()))


def builtin_recipes() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    folder = Path(str(files("lorada"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def stated(
    source: str | None, overrides: list[str], options: dict[str, Any]
) -> list[tuple[str, Any]]:
    """Keys and values in the order in which they count, as they were written.

    What they mean is not looked at, which takes transformers and PEFT; the arguments are those of
    ``load_recipe``.

    Raises:
        ValueError: for a file that is no mapping in YAML or asks for remote code where nobody else
            does, or an override that is not key=value.
        FileNotFoundError: if there is no such file.
    """
    settings = _read_yaml(source) if source is not None else {}
    asked = settings.pop(REMOTE, False)
    settings.update({key: value for key, value in options.items() if value is not None})
    pairs = [*settings.items(), *map(_split, overrides)]
    if asked is not False and REMOTE not in dict(pairs):
        raise ValueError(
            f"{source} says {REMOTE}={asked!r}, and code of a model's repository runs only if you "
            f"say so: add {REMOTE}=true to the command, or {REMOTE}=false to go without"
        )
    return pairs


def load_recipe(
    source: str | None, overrides: list[str], options: dict[str, Any], *, name_output: bool = False
) -> Recipe:
    """Make a recipe from a file or built-in name, ``key=value`` strings and command-line options.

    Args:
        source: path of a YAML file, or the name of a built-in recipe; None to start empty. It
            cannot switch ``trust_remote_code`` on: who runs it says so, here and now.
        overrides: ``key=value``; the value is read as YAML.
        options: recipe fields given as command-line options; None values are left out.
        name_output: where no output is stated, name one after tasks or data, method and seed.

    Raises:
        ValueError: for an unknown key (with the nearest names), an ambiguous key (with the full
            ones), a value of the wrong type (naming the field, the value and the type), or a file
            that asks for remote code where nobody else does.
    """
    pairs = stated(source, overrides, options)
    # Which keys exist depends on the method, so that is settled first.
    method = dict(pairs).get("method", Recipe.model_fields["method"].default)
    values: dict[str, Any] = {"parts": {}, TRAINING: {}}
    parts = method_named(str(method)).part_names
    for key, value in pairs:
        _assign(values, parts, key, value)
    if name_output and "output" not in values:
        values.update(_named_output(values))
    return _validated(values)


def outline(
    source: str | None, overrides: list[str], options: dict[str, Any], *, name_output: bool = False
) -> Recipe:
    """A recipe without the settings of its sections, which take transformers and PEFT to check.

    The arguments are those of ``load_recipe``.

    Raises:
        ValueError: as ``load_recipe``, for all but those settings.
    """
    said = dict(stated(source, overrides, options))
    training = said.get(TRAINING)
    plain = Recipe.model_fields.keys() - {"parts", TRAINING}
    values = {key: value for key, value in said.items() if key in plain}
    method_named(str(said.get("method", Recipe.model_fields["method"].default)))
    if name_output and "output" not in values:
        seeds = [training.get("seed", SEED)] if isinstance(training, dict) else [SEED]
        seeds += [said[key] for key in ("seed", "training.seed") if key in said]
        values.update(_named_output({**values, TRAINING: {"seed": seeds[-1]}}))
    return _validated(values)


def _validated(values: dict[str, Any]) -> Recipe:
    try:
        recipe = Recipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise ValueError(f"the recipe has no {name}: pass --{name} or {name}=…") from error
        raise ValueError(f"{name}={first['input']!r}: {first['msg'].lower()}") from error
    for name in recipe.tasks:
        if name not in TASKS:
            raise unknown("task", name, TASKS)
    for name, value in recipe:
        for key, inner in value.items() if name == "parts" else [(name, value)]:
            refuse_unstorable(key, inner)
    return recipe


def saved_recipe(path: Path, *, trust_remote_code: bool = False) -> Recipe:
    """The recipe that a run's folder holds; its own word on remote code does not count.

    Raises:
        ValueError: as ``load_recipe``.
    """
    return load_recipe(str(path), [], {REMOTE: trust_remote_code})


def _named_output(values: dict[str, Any]) -> dict[str, str]:
    """The output ``runs/TASK-METHOD-seedN``; none for a run that names neither a task nor data."""
    method, task = (values.get(key, Recipe.model_fields[key].default) for key in ("method", "task"))
    names = [name.strip() for name in str(task).split(",")]
    if task == Recipe.model_fields["task"].default:
        if not values.get("data"):
            return {}
        names = [resolve(str(values["data"])).stem]
    seed = values[TRAINING].get("seed", SEED)
    return {"output": f"runs/{'-'.join(names)}-{method}-seed{seed}"}


def _read_yaml(source: str) -> dict[str, Any]:
    recipes = builtin_recipes()
    path = recipes.get(source, Path(source))
    if not path.is_file():
        if path.suffix in (".yaml", ".yml") or os.sep in source:
            raise FileNotFoundError(f"no recipe at {path}")
        raise unknown("recipe", source, recipes)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not YAML: it is not UTF-8 (byte {error.start})") from error
    data = read_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ValueError(f"{path} must be a mapping of keys to values")
    return data


def _split(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override!r} is not key=value")
    return key.strip(), read_yaml(text, f"the value of {override!r}")


def _assign(values: dict[str, Any], parts: list[str], key: str, value: Any) -> None:
    """Set one key, which may be full (``lmam.rank``), bare (``rank``) or a section with a dict."""
    sections = [*parts, TRAINING]
    if key in (*sections, "parts"):
        if not isinstance(value, dict | None):
            raise ValueError(f"{key}={value!r} is a section: write {key}.NAME=…")
        for name, inner in (value or {}).items():
            if key == "parts":
                if name not in parts:
                    raise unknown("part", name, parts)
                _assign(values, parts, name, inner)
            else:
                _set(values, key, name, inner)
        return
    if key in Recipe.model_fields:
        values[key] = value
        return
    section, dot, name = key.partition(".")
    if dot:
        if section not in sections:
            raise unknown("override", key, [f"{s}.…" for s in sections])
        _set(values, section, name, value)
        return
    own = Recipe.model_fields.keys() - {"parts", TRAINING}
    _set(values, owner_of(key, sections, also=own), key, value)


def _set(values: dict[str, Any], section: str, name: str, value: Any) -> None:
    owner = values[TRAINING] if section == TRAINING else values["parts"].setdefault(section, {})
    owner[name] = checked(section, name, value)
