"""``Comparison``: what a comparison is asked for. Saved as ``comparison.yaml`` in its folder."""

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorada.compare.model_names import MODELS_FILE
from lorada.compare.stored_plan import damaged
from lorada.data.rows.held_out_share import share_of
from lorada.data.scoring.row_metrics import refuse_unnamed
from lorada.methods.check_overrides import checked, owner_of, refuse_unknown
from lorada.methods.lookup import allow_methods, method_named, split_settings
from lorada.methods.method import Settings
from lorada.methods.sizes_and_rates import RATE_RANGE
from lorada.runs.folder import differences, refuse_both, refuse_file
from lorada.runs.recipe import JSONL, Recipe, recipe_of, settings_in
from lorada.support.error_messages import first_problem
from lorada.support.files import write_atomic
from lorada.support.plain_yaml import read_yaml, write_yaml
from lorada.support.row_sources import CODE, absolute_files
from lorada.training.load_recipe import RecipeDraft, read_recipe

SPEC_FILE = "comparison.yaml"
# Settings that all runs share are read as a recipe of this method, because it has no parts.
NO_PARTS = "full"
# Rows of like lengths in one batch have less padding, and the same for all methods.
TRAINING = {"train_sampling_strategy": "group_by_length"}
Rate = Annotated[float, Field(ge=RATE_RANGE[0], le=RATE_RANGE[1])]
# What a recipe needs and a comparison does not have: each run has its own.
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
    "train_halvings": "pass --curve",
    "learning_rate": "it is searched, and with --trials 0 it is that of `lorada train`",
    **dict.fromkeys(
        ("eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit",
         "load_best_model_at_end", "metric_for_best_model", "predict_with_generate"),
        "leave it out",
    ),
}  # fmt: skip

FILE_FIELDS = ("held_out", "keep")  # of a comparison, which name files
LEAST_RUNS = 3  # of each method, before ``until`` chooses whose run is next
BEFORE = ":"  # stands before each setting
SETTING = "NAME:part.setting=value"
NUMBER = r"[-+]?[\d.]+(e[-+]?\d+)?"
BETWEEN = "|"  # stands between values to choose from
SEVERAL_NUMBERS = re.compile(rf"{NUMBER}(\|{NUMBER})+")  # to choose from
# Settings that may be a regex of names of modules, in which ``|`` has its usual meaning.
REGEXES = ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern")


def choices_of(text: str) -> list[str]:
    """Each setting of ``lora:r=4|8`` to choose from: ``lora:r=4`` and ``lora:r=8``."""
    name, settings = split_settings(text)
    alternatives: list[list[str]] = []  # of each setting
    for setting in settings:
        key, equals, value = setting.partition("=")
        # A bar between other things may be part of a regular expression; else it is refused later.
        values = value.split(BETWEEN) if SEVERAL_NUMBERS.fullmatch(value) else [value]
        alternatives.append([f"{key}{equals}{value}" for value in values])
    choices = [BEFORE.join((name, *chosen)) for chosen in product(*alternatives)]
    return list(dict.fromkeys(choices))


class MethodSettings(NamedTuple):
    """A method, and the settings that its parts are given."""

    name: str
    parts: dict[str, Settings]


def parts_of(text: str) -> MethodSettings:
    """The name of a method, and the settings that its parts are given.

    It reads ``lora``, ``lora+lmam:lora.r=1`` or ``lmam:rank=2:ablation=softmax``.

    A setting that is unknown, given twice, or of no value that it may have is refused.
    """
    name, settings = split_settings(text)
    part_names = method_named(name).part_names
    parts: dict[str, Settings] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not (equals and key and value):
            raise ValueError(f"{text}: {setting!r} is not a setting: write {SETTING}")
        part, dot, setting_name = key.partition(".")
        if dot and part not in part_names:
            known = ", ".join(part_names) or "none"
            raise ValueError(f"{text}: {name} has no part {part}, only {known}")
        loaded = read_yaml(value, f"{text}: {setting}")
        try:
            if not dot:  # the part is left out, as only one has such a setting
                setting_name = key
                part = owner_of(key, part_names, also_known=part_names)
            settings_of_part = parts.setdefault(part, {})
            if setting_name in settings_of_part:
                raise ValueError(f"{part}.{setting_name} is given twice: leave one of them out")
            refuse_unknown(part, setting_name)
            if BETWEEN in value and setting_name not in REGEXES:
                raise ValueError(_numbers_only(text, setting))
            settings_of_part[setting_name] = checked(part, setting_name, loaded)
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from error
    return MethodSettings(name, parts)


def _numbers_only(text: str, setting: str) -> str:
    """What is said of a method with a setting to choose from that is not between numbers."""
    key, _, value = setting.partition("=")
    values = [choice for choice in value.split(BETWEEN) if choice]
    alternatives = [text.replace(setting, f"{key}={choice}") for choice in values]
    return (
        f"{BETWEEN} chooses between numbers only: write the method once for each value, as "
        f"{','.join(alternatives)}"
    )


class Comparison(BaseModel):
    """What to compare."""

    model_config = ConfigDict(extra="forbid")

    # Settings that all runs share, such as the model and the rows: fields of ``Recipe``, and only
    # those that were given. A recipe has a method and a folder too, which are of each run.
    recipe: dict[str, Any]
    # The files of the rows to score, or a share of the rows to learn from, such as 20%; None for
    # benchmarks, which have their own.
    held_out: str | None = None
    # The files of rows that the model should still do; None for those of the package.
    keep: str | None = None
    # Names of ``method_named``, each with settings if need be (``parts_of``), of which a search may
    # choose: ``choices_of``.
    methods: list[str] = []
    budgets: list[str] = []  # of trained parameters, as ``limit_of`` reads them; [] for the default
    # Of the final runs; a search takes the first.
    seeds: Annotated[list[int], Field(min_length=1)] = [1, 2, 3]
    # How many learning rates are tried for each method and size; with 0 or 1 it is trained at the
    # rate of ``lorada train``.
    trials: int = Field(4, ge=0)
    rates: list[Rate] = []  # the learning rates to try, the same for all; [] for each one's own
    # The expected loss, in the unit of the metric, of the leading method at which no more seeds are
    # run; None to run every seed of each.
    until: float | None = Field(None, ge=0, allow_inf_nan=False)
    # The time that the comparison was begun with; None for as long as all of it takes.
    hours: float | None = Field(None, gt=0, allow_inf_nan=False)
    # How much a cheaper method may cost, in that unit; None for 1 point, or 2 % of the lowest loss.
    margin: float | None = Field(None, ge=0, allow_inf_nan=False)
    # Baselines: how many training rows a prompt of the untrained model shows as examples, and files
    # of answers that somebody else gave.
    shots: list[Annotated[int, Field(ge=1)]] = []
    answers: list[str] = []
    # Where the texts of held-out rows are shown: None for report.html alone, True for predictions
    # and report.json too, False for none of them.
    with_text: bool | None = None
    allow_overlap: bool = False  # whether held-out rows may be training rows too
    # Whether the pick is trained on half and on a quarter of the training rows too. It is not
    # saved, because a finished comparison may be asked for it too.
    curve: bool = Field(False, exclude=True)
    # Whether code of the model's repository may run. It is not saved, because each command has to
    # allow it.
    trust_remote_code: bool = Field(False, exclude=True)

    def check(self) -> None:
        """Check names and numbers, without loading torch."""
        if not self.methods:
            raise ValueError("nothing to compare: pass --methods NAME,NAME (see `lorada methods`)")
        for field in ("methods", "budgets", "seeds", "rates", "shots", "answers"):
            _refuse_repeated(field, getattr(self, field))
        for method in self.methods:
            for choice in choices_of(method):
                parts_of(choice)  # refuses unknown names and settings
        self._check_held_out()

    def _check_held_out(self) -> None:
        """Rows of a user's own need held-out rows, and benchmarks bring theirs."""
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

    @property
    def may_leave_runs(self) -> bool:
        """Whether a finished comparison may have fewer runs of a method than there are seeds."""
        return self.until is not None or self.hours is not None

    @property
    def searches_rates(self) -> bool:
        """Whether several learning rates are tried; one is taken as it is."""
        return self.trials > 1

    def is_searched(self, method: str) -> bool:
        """Whether one of ``methods`` has anything to choose from: rates, or its settings."""
        return self.searches_rates or len(choices_of(method)) > 1

    @property
    def shared_recipe(self) -> Recipe:
        """The settings that all runs share, as a recipe of a method without parts."""
        return self.run_recipe(NO_PARTS, "-")

    def run_recipe(self, method: str, output: Path | str, **changes: Any) -> Recipe:
        """The recipe of one run; ``changes`` are fields, and ``training`` is added to the shared.

        Its ``eval_data`` are the held-out rows, which are scored after the training. ``method`` may
        have settings, as in ``methods``; ``parts`` among the changes replaces them.
        """
        first_choice = parts_of(choices_of(method)[0])
        shared_training = self.recipe.get("training", {})
        own_training = changes.pop("training", {})
        fields = {
            "method": first_choice.name,
            "parts": first_choice.parts,
            "output": str(output),
            "eval_data": self.held_out,
            "trust_remote_code": self.trust_remote_code,
            **changes,
            "training": {**TRAINING, **shared_training, **own_training},
        }
        return Recipe(**{**self.recipe, **fields})

    def is_same(self, other: "Comparison") -> bool:
        """Whether the other asks for the same; its rows may lie in another folder by now."""
        fields, other_fields = self.model_dump(), other.model_dump()
        for comparison in (fields, other_fields):
            comparison["recipe"].pop("data_dir", None)
        return fields == other_fields

    def save(self, folder: Path) -> None:
        """Write ``comparison.yaml``."""
        write_atomic(folder / SPEC_FILE, write_yaml(self.model_dump()))


def _refuse_repeated(field: str, values: Sequence[Any]) -> None:
    """Refuse an option of a comparison that names something twice."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"--{_option(field)} names {value} twice: leave one out")


def comparison_of(recipe: Recipe, options: dict[str, Any]) -> Comparison:
    """Make a comparison of shared settings and options, and check it; None is an option not given.

    Options that contradict each other, and settings that a comparison chooses itself, are refused.
    """
    shared = recipe.with_absolute_paths().model_dump(exclude_unset=True)
    trust = shared.pop("trust_remote_code", False)
    shared.pop("parts", None)  # there are none
    for name, fixed in FIXED.items():
        if shared[name] == fixed:
            del shared[name]
    _refuse_chosen(shared)

    allow_methods(options.get("methods") or [])  # the user has named them
    options = {name: value for name, value in options.items() if value is not None}
    for field in FILE_FIELDS:
        if options.get(field):
            options[field] = absolute_files(options[field])
    if options.get("answers"):
        options["answers"] = [absolute_files(file) for file in options["answers"]]
    rates = options.get("rates", [])
    if rates:
        trials = options.setdefault("trials", len(rates))
        if trials != len(rates):
            raise ValueError(f"--trials {trials} and {len(rates)} --rates: leave out --trials")
    try:
        comparison = Comparison(recipe=shared, trust_remote_code=trust, **options)
    except ValidationError as error:
        option, wrong = first_problem(error, depth=1)
        raise ValueError(f"--{option} {error.errors()[0]['input']}: {wrong}") from error
    comparison.check()
    return comparison


def _refuse_chosen(shared: dict[str, Any]) -> None:
    """Refuse shared settings that a comparison chooses by itself."""
    settings = {**shared, **shared.get("training", {})}
    for name, remedy in CHOSEN.items():
        if name in settings:
            raise ValueError(f"{name}={settings[name]!r} is not for a comparison: {remedy}")


def saved_comparison(folder: Path) -> Comparison:
    """Read the comparison in a folder; refuse one that is missing or damaged.

    Its names and numbers were checked when it began. Code of a model's repository is not trusted
    because the folder says so.
    """
    path = folder / SPEC_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no comparison: it has no {SPEC_FILE}")
    try:
        comparison = Comparison(**{**settings_in(path), "trust_remote_code": False})
        recipe_of({**comparison.recipe, **FIXED})  # refuses shared settings that are none
    except ValidationError as error:  # which is a ValueError too, of many lines
        raise damaged(path, ": ".join(first_problem(error))) from error
    except ValueError as error:
        raise damaged(path, error) from error
    return comparison


def asked_again(saved: Comparison, pairs: list[str], options: dict[str, Any]) -> RecipeDraft:
    """The shared settings of a comparison to go on with, as ``resumed_comparison`` takes them.

    ``pairs`` of ``key=value`` and ``options`` that are fields of a recipe, if given, replace the
    saved ones. A metric that is code of a file has to be given.
    """
    settings = dict(saved.recipe)
    if CODE in str(settings.get("metric")):
        del settings["metric"]
    given = {name: value for name, value in options.items() if value is not None}
    return read_recipe(None, pairs, {**settings, **FIXED, **given})


def resumed_comparison(
    folder: Path, saved: Comparison, now: Recipe, options: dict[str, Any]
) -> Comparison:
    """The comparison in a folder, after a check that nothing given on the command line differs.

    ``now`` is the recipe of what is ``asked_again``; ``options`` has fields of ``Comparison``, None
    among them is not given. The same rows may lie in another folder by now.
    """
    allow_methods(options.get("methods") or [])
    saved.check()
    _refuse_other_options(saved, options)
    now = now.with_absolute_paths()
    _refuse_other_settings(Recipe(**saved.recipe, **FIXED), now, folder)
    recipe = {**saved.recipe, "data_dir": now.data_dir} if now.data_dir else saved.recipe
    update = {
        "trust_remote_code": now.trust_remote_code,
        "recipe": recipe,
        "curve": bool(options.get("curve")),
    }
    return saved.model_copy(update=update)


def _refuse_other_options(saved: Comparison, options: dict[str, Any]) -> None:
    """Refuse options that differ from those of the comparison to resume."""
    for field, value in options.items():
        if field == "curve":  # may be asked for at any time
            continue
        if field in FILE_FIELDS and value:
            value = absolute_files(value)
        if field == "answers" and value:
            value = [absolute_files(file) for file in value]
        saved_value = getattr(saved, field)
        if value is not None and value != saved_value:
            raise _differs(f"--{_option(field)}", saved_value, value)


def _refuse_other_settings(before: Recipe, now: Recipe, folder: Path) -> None:
    """Refuse shared settings that differ from those of the comparison to resume."""
    if now.metric is None:
        refuse_unnamed(before.metric, folder)
    for field, old, value in differences(before, now):
        if not (isinstance(old, dict) and isinstance(value, dict)):
            raise _differs(field, old, value)
        # Of settings in a section, the first that differs is named alone.
        names = [name for name in {*old, *value} if old.get(name) != value.get(name)]
        first = min(names)
        raise _differs(f"{field}.{first}", old.get(first), value.get(first))


def refuse_taken(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that a comparison may not be written to.

    It is a file; it holds a comparison that is neither to be resumed nor overwritten; or it holds
    other files and no comparison.
    """
    refuse_both(resume=resume, overwrite=overwrite)
    refuse_file(folder)
    if not folder.is_dir():
        return
    if any((folder / name).is_file() for name in (SPEC_FILE, MODELS_FILE)):
        if not (resume or overwrite):
            raise ValueError(
                f"{folder} already holds a comparison: use --resume, --overwrite or another "
                "--output"
            )
        return
    # Locks of lorada's own may lie there already, of a command that begins at the same moment.
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".lorada")]
    if others:
        raise ValueError(
            f"{folder} is not empty ({min(others)}) and holds no comparison: choose another "
            "--output"
        )


def _option(field: str) -> str:
    """The command-line option of a field, without its dashes."""
    return "budget" if field == "budgets" else field.replace("_", "-")


def _differs(name: str, old: Any, value: Any) -> ValueError:
    """The error of an option or a setting that is not that of the comparison to resume."""
    return ValueError(
        f"the comparison to resume had {name}={_as_typed(old)}, not {_as_typed(value)}: leave it "
        "as it was, or start again with --overwrite"
    )


def _as_typed(value: Any) -> Any:
    """A value as it is typed on the command line: lists with commas."""
    return ",".join(map(str, value)) if isinstance(value, list) else value
