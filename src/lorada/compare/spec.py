"""``Comparison``: what a comparison is asked for. Saved as ``comparison.yaml`` in its folder."""

import re
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorada.compare.stored_plan import damaged
from lorada.data.metrics import refuse_unnamed
from lorada.data.read_rows import share_of
from lorada.methods.check_overrides import checked, owner_of
from lorada.methods.lookup import method_named
from lorada.methods.method import Settings
from lorada.methods.sizes_and_rates import RATE_RANGE
from lorada.runs.folder import differences, refuse_both, refuse_file
from lorada.runs.recipe import JSONL, Recipe, read_yaml, recipe_of, settings_in, write_yaml
from lorada.support.error_messages import first_problem
from lorada.support.files import write_atomic
from lorada.support.row_sources import CODE, absolute_files
from lorada.training.load_recipe import Asked, read_recipe

SPEC_FILE = "comparison.yaml"
# Settings that all runs share are read as a recipe of this method, because it has no parts.
NO_PARTS = "full"
# Rows of like lengths in one batch have less padding, and the same for all methods.
TRAINING = {"train_sampling_strategy": "group_by_length"}
Rate = Annotated[float, Field(ge=RATE_RANGE[0], le=RATE_RANGE[1])]
FIXED: dict[str, Any] = {"method": NO_PARTS, "output": "-"}
# Settings that a comparison chooses by itself → what to give instead of them.
CHOSEN = {
    "method": "pass --methods",
    "output": "pass --output",
    "eval_data": "pass --held-out FILE or 20%",
    **dict.fromkeys(("dev_rows", "dev_seed"), "the comparison sets rows aside by itself"),
    "early_stopping": "every run takes as many steps, and the held-out rows are for the scores",
    "from_adapter": "every run starts without an adapter",
    "seed": "pass --seeds",
    "learning_rate": "it is searched, and with --trials 0 it is the default of each method",
    **dict.fromkeys(
        ("eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit",
         "load_best_model_at_end", "metric_for_best_model", "predict_with_generate"),
        "leave it out",
    ),
}  # fmt: skip

LEAST_RUNS = 3  # of each method, before ``until`` chooses whose run is next
BEFORE = ":"  # stands before each setting
SETTING = "NAME:part.setting=value"
NUMBER = r"[-+]?[\d.]+(e[-+]?\d+)?"
SEVERAL = re.compile(rf"{NUMBER}(\|{NUMBER})+")  # to choose from


def choices_of(text: str) -> list[str]:
    """Each setting of ``lora:r=4|8`` to choose from: ``lora:r=4`` and ``lora:r=8``."""
    name, *settings = text.split(BEFORE)
    each = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        values = value.split("|") if SEVERAL.fullmatch(value) else [value]
        each.append([key + equals + one for one in values])
    return list(dict.fromkeys(BEFORE.join((name, *one)) for one in product(*each)))


def parts_of(text: str) -> tuple[str, dict[str, Settings]]:
    """The name of a method, and the settings that its parts are given.

    It reads ``lora``, ``lora+lmam:lora.r=1`` or ``lmam:rank=2:ablation=softmax``.
    """
    name, *settings = text.split(BEFORE)
    method = method_named(name)
    parts: dict[str, Settings] = {}
    for setting in settings:
        key, found, value = setting.partition("=")
        if not (found and key and value):
            raise ValueError(f"{text}: {setting!r} is not a setting: write {SETTING}")
        part, dot, inner = key.partition(".")
        if dot and part not in method.part_names:
            known = ", ".join(method.part_names) or "none"
            raise ValueError(f"{text}: {name} has no part {part}, only {known}")
        loaded = read_yaml(value, f"{text}: {setting}")
        try:
            if not dot:
                part, inner = owner_of(key, method.part_names, also=method.part_names), key
            own = parts.setdefault(part, {})
            if inner in own:
                raise ValueError(f"{part}.{inner} is given twice: leave one of them out")
            own[inner] = checked(part, inner, loaded)
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from error
    return name, parts


class Comparison(BaseModel):
    """What to compare."""

    model_config = ConfigDict(extra="forbid")

    recipe: dict[str, Any]  # settings that all runs share, such as the model and the rows
    # The files of the rows to score, or a share of the rows to learn from, such as 20%; None for
    # benchmarks, which have their own.
    held_out: str | None = None
    # Names of ``method_named``, each with settings if need be (``parts_of``), of which a search may
    # choose: ``choices_of``.
    methods: list[str] = []
    budgets: list[str] = []  # of trained parameters, as ``limit_of`` reads them; [] for the default
    # Of the final runs; a search takes the first.
    seeds: Annotated[list[int], Field(min_length=1)] = [1, 2, 3]
    # How many learning rates are tried for each method and size; 0 or 1 for its default rate,
    # unless it has several settings to choose from.
    trials: int = Field(4, ge=0)
    rates: list[Rate] = []  # the learning rates to try, the same for all; [] for each one's own
    # The expected loss, in the unit of the metric, of the leading method at which no more seeds are
    # run; None to run every seed of each.
    until: float | None = Field(None, ge=0, allow_inf_nan=False)
    # How much a cheaper method may cost, in that unit; None for 1 point, or 2 % of the lowest loss.
    margin: float | None = Field(None, ge=0, allow_inf_nan=False)
    with_text: bool = False  # whether predictions and report have the text of the held-out rows
    allow_overlap: bool = False  # whether held-out rows may be training rows too
    # Whether code of the model's repository may run. It is not saved, because each command has to
    # allow it.
    trust_remote_code: bool = Field(False, exclude=True)

    def check(self) -> None:
        """Check names and numbers, without loading torch."""
        if not self.methods:
            raise ValueError("nothing to compare: pass --methods NAME,NAME (see `lorada methods`)")
        for option in ("methods", "budgets", "seeds", "rates"):
            values = getattr(self, option)
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"--{_option(option)} names {twice} twice: leave one out")
        for name in self.methods:
            for one in choices_of(name):
                parts_of(one)
        if not self.has_own_rows and self.held_out is not None:
            raise ValueError(
                f"task={self.recipe['task']} has held-out rows of its own: leave out --held-out "
                f"{self.held_out}, or the task"
            )
        if self.has_own_rows and self.held_out is None:
            raise ValueError("a comparison scores on held-out rows: pass --held-out FILE or 20%")
        share_of(self.held_out)  # refuses a share that leaves no rows

    @property
    def has_own_rows(self) -> bool:
        """Whether the rows are files of the user, not those of a benchmark."""
        return bool(self.recipe.get("task", JSONL) == JSONL)

    def is_searched(self, method: str) -> bool:
        """Whether one of ``methods`` has anything to choose from."""
        return self.trials > 1 or len(choices_of(method)) > 1

    @property
    def shared_recipe(self) -> Recipe:
        """The settings that all runs share, as a recipe of a method without parts."""
        return self.run_recipe(NO_PARTS, "-")

    def run_recipe(self, method: str, output: Path | str, **changes: Any) -> Recipe:
        """The recipe of one run; ``changes`` are fields, and ``training`` is added to the shared.

        Its ``eval_data`` are the held-out rows, which are scored after the training. ``method`` may
        have settings, as in ``methods``; ``parts`` among the changes replaces them.
        """
        name, parts = parts_of(choices_of(method)[0])
        training = {**TRAINING, **self.recipe.get("training", {}), **changes.pop("training", {})}
        return Recipe(**{
            **self.recipe, "method": name, "parts": parts, "output": str(output),
            "eval_data": self.held_out, "trust_remote_code": self.trust_remote_code, **changes,
            "training": training,
        })  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write ``comparison.yaml``."""
        write_atomic(folder / SPEC_FILE, write_yaml(self.model_dump()))


def comparison_of(recipe: Recipe, asked: dict[str, Any]) -> Comparison:
    """A comparison of shared settings and options; ``None`` among the options is not given."""
    shared = recipe.with_absolute_paths().model_dump(exclude_unset=True)
    trust = shared.pop("trust_remote_code", False)
    shared.pop("parts", None)  # there are none
    for key, fixed in FIXED.items():
        if shared[key] == fixed:
            del shared[key]
    given = {**shared, **shared.get("training", {})}
    for name, instead in CHOSEN.items():
        if name in given:
            raise ValueError(f"{name}={given[name]!r} is not for a comparison: {instead}")
    given = {name: value for name, value in asked.items() if value is not None}
    if held_out := given.get("held_out"):
        given["held_out"] = absolute_files(held_out)
    rates = given.get("rates", [])
    if rates and given.setdefault("trials", len(rates)) != len(rates):
        raise ValueError(f"--trials {given['trials']} and {len(rates)} --rates: leave out --trials")
    try:
        comparison = Comparison(recipe=shared, trust_remote_code=trust, **given)
    except ValidationError as error:
        option, wrong = first_problem(error, depth=1)
        raise ValueError(f"--{option} {error.errors()[0]['input']}: {wrong}") from error
    comparison.check()
    return comparison


def saved_comparison(folder: Path) -> Comparison:
    """The comparison in a folder; its names and numbers are not checked again."""
    path = folder / SPEC_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no comparison: it has no {SPEC_FILE}")
    try:
        found = Comparison(**{**settings_in(path), "trust_remote_code": False})
        recipe_of({**found.recipe, **FIXED})
        return found
    except ValidationError as error:
        raise damaged(path, ": ".join(first_problem(error))) from error
    except ValueError as error:
        raise damaged(path, error) from error


def asked_again(saved: Comparison, pairs: list[str], options: dict[str, Any]) -> Asked:
    """The shared settings of a comparison to go on with, as ``resumed_comparison`` takes them.

    ``pairs`` of ``key=value`` and ``options`` that are fields of a recipe, if given, replace the
    saved ones. A metric that is code of a file has to be given.
    """
    kept = {key: v for key, v in saved.recipe.items() if key != "metric" or CODE not in str(v)}
    given = {key: value for key, value in options.items() if value is not None}
    return read_recipe(None, pairs, {**kept, **FIXED, **given})


def resumed_comparison(
    folder: Path, saved: Comparison, now: Recipe, asked: dict[str, Any]
) -> Comparison:
    """The comparison in a folder, after a check that nothing given on the command line differs.

    ``now`` is the recipe of what is ``asked_again``; ``asked`` has fields of ``Comparison``, None
    among them is not given. The same rows may lie in another folder by now.
    """
    saved.check()
    if held_out := asked.get("held_out"):
        asked = {**asked, "held_out": absolute_files(held_out)}
    for name, value in asked.items():
        old = getattr(saved, name)
        if value is not None and value != old:
            raise _differs(f"--{_option(name)}", old, value)
    before, now = Recipe(**saved.recipe, **FIXED), now.with_absolute_paths()
    if now.metric is None:
        refuse_unnamed(before.metric, folder)
    for key, old, value in differences(before, now):
        if isinstance(old, dict):
            names = sorted(name for name in {*old, *value} if old.get(name) != value.get(name))
            key, old, value = f"{key}.{names[0]}", old.get(names[0]), value.get(names[0])
        raise _differs(key, old, value)
    recipe = {**saved.recipe, "data_dir": now.data_dir} if now.data_dir else saved.recipe
    update = {"trust_remote_code": now.trust_remote_code, "recipe": recipe}
    return saved.model_copy(update=update)


def refuse_taken_by_other(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a comparison may not be written to."""
    refuse_both(resume=resume, overwrite=overwrite)
    refuse_file(folder)
    if not folder.is_dir():
        return
    if (folder / SPEC_FILE).is_file():
        if not (resume or overwrite):
            raise ValueError(
                f"{folder} already holds a comparison: use --resume, --overwrite or another "
                "--output"
            )
    elif other := sorted(p.name for p in folder.iterdir() if not p.name.startswith(".lorada")):
        raise ValueError(
            f"{folder} is not empty ({other[0]}) and holds no comparison: choose another --output"
        )


def _option(name: str) -> str:
    """The name of a command-line option, without its dashes."""
    return "budget" if name == "budgets" else name.replace("_", "-")


def _differs(name: str, old: Any, value: Any) -> ValueError:
    before, now = (",".join(map(str, v)) if isinstance(v, list) else v for v in (old, value))
    return ValueError(
        f"the comparison to resume had {name}={before}, not {now}: leave it as it was, or start "
        "again with --overwrite"
    )
