"""Recipes: files and overrides mean the same, wrong ones say why, a stranger's does no harm."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from folders import refused
from trained_runs import run_recipe

from lorada import METHODS
from lorada.data.files.read_rows import read_rows
from lorada.runs.folder import same_recipe
from lorada.runs.recipe import Recipe, builtin_recipes, saved_recipe
from lorada.training.arguments import training_arguments
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

BASE = {"model": "smollm2-135m", "output": "out", "method": "lorada_la"}
TOKEN = "hf_thisIsNobodysBusiness"


def load(*overrides, source=None, **options):
    return load_recipe(source, list(overrides), {**BASE, **options})


def refused_recipe(message, *overrides, **options):
    refused(message, lambda: load(*overrides, **options))


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", builtin_recipes())
def test_every_builtin_recipe_loads_and_its_rows_are_there(name):
    recipe = load_recipe(name, [], {})
    for data in (recipe.data, recipe.eval_data):
        assert read_rows(data)
    assert training_arguments(recipe).output_dir == recipe.output


def test_a_file_and_overrides_mean_the_same(tmp_path):
    path = tmp_path / "mine.yaml"
    settings = {**BASE, "method": "lorada_la", "lmam": {"rank": 4}, "training": {"max_steps": 5}}
    path.write_text(yaml.safe_dump(settings))
    from_file = load_recipe(str(path), [], {})
    assert from_file == load("lmam.rank=4", "max_steps=5", method="lorada_la")


def test_overrides_win_over_options_and_options_over_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: lora\nmodel: a/b\noutput: one\nlora: {r: 2}\n")
    recipe = load_recipe(str(path), ["lora.r=5", "output=three"], {"output": "two"})
    assert (recipe.model, recipe.output, recipe.parts["lora"]["r"]) == ("a/b", "three", 5)


ASKING = sorted(name for name, method in METHODS.items() if method.arguments)


@pytest.mark.first
@pytest.mark.parametrize("method", ASKING)
def test_what_a_user_sets_wins_over_what_the_method_asks_for(method):
    asked = METHODS[method].arguments
    wanted = {
        name: not value if isinstance(value, bool) else value / 2 for name, value in asked.items()
    }
    recipe = load(method=method, training=wanted)
    arguments = training_arguments(recipe, asked, quiet=True)
    assert {name: getattr(arguments, name) for name in wanted} == wanted


def test_values_take_the_type_of_their_field_which_a_bare_key_finds_by_its_name():
    recipe = load("learning_rate=1e-3", "inverse_scale=255", "r=3", "save_strategy=no", "bf16=no")
    assert recipe.parts == {"lmam": {"inverse_scale": 255}, "lora": {"r": 3}}
    assert recipe.training == {"learning_rate": 1e-3, "save_strategy": "no", "bf16": False}
    assert recipe.training["bf16"] is False


@pytest.mark.parametrize("key", ["output_dir", "resume_from_checkpoint"])
def test_what_the_run_itself_decides_cannot_be_overridden(key):
    refused("unknown setting of training", lambda: load(f"training.{key}=x"))


def test_a_recipe_without_a_model_or_an_output_says_so():
    refused("has no model", lambda: load_recipe(None, [], {"output": "x"}))
    refused("has no output: pass --output", lambda: load_recipe(None, [], {"model": "a/b"}))


def test_every_field_of_a_recipe_is_described():
    for name, field in Recipe.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    "name", sorted(Recipe.model_fields.keys() - {"method", "parts", "training"})
)
def test_an_error_about_a_field_begins_with_its_name_as_it_is_typed(name):
    refused(rf"^{name}(\.\d+)?=", lambda: load(f"{name}=[{{}}]"))


@pytest.fixture(scope="module")
def run(place):
    """A finished run, whose hub token was given and whose checkpoint is still there."""
    settings = [f"hub_token={TOKEN}", "max_steps=2", "save_steps=1", "report_to=[]", "rank=2",
                "per_device_train_batch_size=2"]  # fmt: skip
    return train(run_recipe(settings, place, place / "run", rows="rows", method="lmam"), quiet=True)


@pytest.fixture
def foreign(run, tmp_path):
    """A run from somebody else, not finished, whose model's repository ships code."""
    model = shutil.copytree(Path(run.result.model), tmp_path / "model")
    marker = tmp_path / "the code ran"
    (model / "theirs.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig\n"
        f"Path({str(marker)!r}).touch()\n"
        "class Theirs(LlamaConfig):\n    model_type = 'theirs'\n"
    )
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Theirs"}}
    (model / "config.json").write_text(json.dumps(config))
    folder = shutil.copytree(run.run, tmp_path / "run")
    settings = yaml.safe_load((folder / "recipe.yaml").read_text())
    settings |= {"model": str(model), "trust_remote_code": True, "output": str(folder)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder, marker


# A command, and whether its user says that code may run.
COMMANDS = {
    "train --resume": (["train", "--resume", "--output", "RUN"], False),
    "evaluate": (["evaluate", "RUN", "--data", "ROWS"], False),
    "export": (["export", "RUN", "NEW"], False),
    "train with a setting": (
        ["train", "trust_remote_code=true", "--resume", "--output", "RUN"], True
    ),
    "train with an option": (["train", "--trust-remote-code", "--resume", "--output", "RUN"], True),
    "generate": (["generate", "--trust-remote-code", "--prompt", "a", "RUN"], True),
}  # fmt: skip


@pytest.mark.first
@pytest.mark.parametrize("command", COMMANDS)
def test_code_of_a_model_that_a_recipe_names_runs_only_where_the_user_says_so(
    command, foreign, place, call, mistake
):
    (folder, marker), (words, told) = foreign, COMMANDS[command]
    if words[0] == "train":
        (folder / "result.json").unlink()
    names = {"RUN": folder, "NEW": folder.parent / "new", "ROWS": place / "rows.jsonl"}
    said = (call if told else mistake)(*[names.get(word, word) for word in words])
    assert marker.exists() == told
    if command == "train --resume":
        assert "trust_remote_code=True, and code of a model's repository runs only if" in said


def test_a_file_cannot_switch_remote_code_on_and_the_command_can(tmp_path):
    path = written(tmp_path / "mine.yaml", "trust_remote_code: true\n")
    refused_recipe(
        "mine.yaml says trust_remote_code=True, and code of .* only if you say so", source=path
    )
    assert load("trust_remote_code=true", source=path).trust_remote_code is True
    assert load("trust_remote_code=false", source=path).trust_remote_code is False
    assert load(source=path, trust_remote_code=True).trust_remote_code is True
    assert saved_recipe(Path(written(tmp_path / "saved.yaml", yaml.safe_dump(
        {**BASE, "trust_remote_code": True})))).trust_remote_code is False  # fmt: skip
    hidden = written(tmp_path / "hidden.yaml", "parts: {trust_remote_code: true}\n")
    refused_recipe("unknown part 'trust_remote_code'", source=hidden)


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n"
    for old, new in zip("abcdefghijklmnopqrstuvw", "bcdefghijklmnopqrstuvwx", strict=True)
)
HOSTILE = {
    "a list": ("- a\n", "must be a mapping"),
    "a billion laughs": (LAUGHS, r"line 2 is not YAML: \*a stands for another value"),
    "an anchor in itself": ("lora: &a {r: *a}\n", r"\*a stands for another value"),
    "a tag of Python": ("method: !!python/name:os.system ''\n", "the tag .*os.system has no place"),
    "a tag of a number": ("max_length: !!int ''\n", "the tag .*int has no place"),
    "a number as a key": ("lora:\n  5: 1\n", "line 2 is not YAML: 5 is a key and no text"),
    "a list as a key": ("? [a]\n: 1\n", r"\['a'\] is a key and no text"),
    "a key twice": ("lora:\n  r: 2\n  r: 3\n", "line 3 is not YAML: 'r' is given twice"),
    "too deep": ("[" * 3000, "is not YAML: it is nested too deeply"),
    "too long a number": ("max_length: " + "9" * 5000, "is not YAML: "),
}  # fmt: skip


@pytest.mark.first
@pytest.mark.parametrize("case", HOSTILE)
def test_yaml_that_is_more_than_plain_data_is_refused_at_once(case, tmp_path):
    text, message = HOSTILE[case]
    refused_recipe(message, source=written(tmp_path / "theirs.yaml", text))


def test_values_on_the_command_line_are_plain_data_too():
    refused_recipe(r"the value of 'lora=&a \[\*a\]' is not YAML: \*a stands", "lora=&a [*a]")
    refused_recipe("the value of 'lora={5: 1}' is not YAML: 5 is a key", "lora={5: 1}")


def test_a_saved_recipe_loads_as_it_was_with_lists_of_one_object_written_out(tmp_path):
    same = ["q_proj"]
    recipe = load("max_steps=5", "lora.target_modules=[q_proj]", "lmam.target_modules=[self_attn]")
    recipe.parts["lora"]["target_modules"] = recipe.parts["lmam"]["target_modules"] = same
    recipe.save(tmp_path)
    assert saved_recipe(tmp_path / "recipe.yaml") == recipe
    assert load_recipe(str(tmp_path / "recipe.yaml"), [], {}) == recipe


def test_dates_are_texts_and_numbers_need_no_point():
    assert load("output=2024-01-01").output == "2024-01-01"
    warmed = training_arguments(load(SCHEDULE, "training.lr_scheduler_kwargs={min_lr: 1e-5}"))
    assert warmed.lr_scheduler_kwargs == {"min_lr": 1e-5}


@pytest.mark.parametrize(
    "pair",
    [
        "rope_factor=.inf", "learning_rate=1e400", "lora.lora_alpha=.nan",
        "lora.rank_pattern={a: .inf}", "lr_scheduler_kwargs={a: [{b: .nan}]}",
    ],
)  # fmt: skip
def test_a_number_that_is_not_finite_is_refused(pair):
    refused_recipe("finite", pair)


def test_half_a_character_is_refused_before_it_cannot_be_written():
    refused_recipe(r"run_name='\\udc80' is not UTF-8 text", training={"run_name": "\udc80"})
    refused_recipe(r"output='\\udc80' is not UTF-8 text", output="\udc80")


SCHEDULE = "lr_scheduler_type=cosine_with_min_lr"
REFUSED = {
    "two precisions": (("training.fp16=true", "training.bf16=true"), ""),
    "an unknown setting of a schedule": (("lr_scheduler_kwargs={bogus: 1}",), "bogus"),
    "a text for a number": (
        ("lr_scheduler_type=cosine", "lr_scheduler_kwargs={num_cycles: x}"), ""
    ),
    "what a schedule needs": ((SCHEDULE, "lr_scheduler_kwargs={num_cycles: 1}"), "min_lr"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_training_arguments_refuse_is_known_before_training(case):
    pairs, message = REFUSED[case]
    refused(f"TrainingArguments: .*{message}", lambda: training_arguments(load(*pairs)))


def test_a_token_is_used_and_stored_nowhere(run):
    files = [path for path in run.run.rglob("*") if path.is_file()]
    assert {"recipe.yaml", "result.json", "training_args.bin"} <= {path.name for path in files}
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in json.dumps(run.result.stored())


def test_a_run_goes_on_with_its_token_given_anew_or_without(run):
    before = saved_recipe(run.run / "recipe.yaml")
    given = load_recipe(str(run.run / "recipe.yaml"), [f"hub_token={TOKEN}"], {})
    assert "hub_token" not in before.training
    assert given.training["hub_token"] == TOKEN
    same_recipe(before, given)
    same_recipe(given, before)


def test_a_secret_inside_of_a_dictionary_is_not_stored_either():
    recipe = load(f"training.fsdp_config={{comet: {{api_key: {TOKEN}, project: p}}}}")
    assert recipe.model_dump()["training"] == {"fsdp_config": {"comet": {"project": "p"}}}


def test_settings_of_benchmarks_and_of_windows_are_refused_for_rows_of_ones_own(place, tmp_path):
    for pair in ("protocol=bogus", "train_on=x", f"data_dir={tmp_path}", "eval_lengths=[8]",
                 "eval_windows=2"):  # fmt: skip
        asked = run_recipe([pair], place, tmp_path / "run", rows="rows", method="lmam")
        said = f"{pair.partition('=')[0]}.*leave it out"
        refused(said, lambda asked=asked: train(asked, quiet=True))
