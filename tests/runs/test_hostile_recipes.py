"""Recipes and runs from somebody else: no code of theirs runs, no file hangs, no secret is kept."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from folders import llama_folder, rows_file

from lorada.runs.folder.folder import same_recipe
from lorada.runs.recipe import load_recipe, saved_recipe
from lorada.runs.training.arguments import training_arguments
from lorada.runs.training.train import train

TOKEN = "hf_thisIsNobodysBusiness"
BASE = {"model": "smollm2-135m", "output": "out"}


def load(*overrides, source=None, **options):
    return load_recipe(source, list(overrides), {**BASE, **options})


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def refused(message, *overrides, **options):
    with pytest.raises(ValueError, match=message) as error:
        load(*overrides, **options)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    llama_folder(place / "llama")
    rows_file(place / "rows.jsonl")
    return place


@pytest.fixture(scope="module")
def run(place):
    """A finished run, whose hub token was given and whose checkpoint is still there."""
    settings = [f"hub_token={TOKEN}", "max_steps=2", "save_steps=1", "report_to=[]", "rank=2",
                "per_device_train_batch_size=2"]  # fmt: skip
    fixed = {"model": str(place / "llama"), "data": str(place / "rows.jsonl"), "method": "lmam"}
    return train(load_recipe(None, settings, {**fixed, "output": str(place / "run")}), quiet=True)


@pytest.fixture
def foreign(run, tmp_path):
    """A run from somebody else, not finished, whose model's repository ships code."""
    model = shutil.copytree(Path(run.result["model"]), tmp_path / "model")
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


COMMANDS = {
    "train --resume": ["train", "--resume", "--output", "RUN"],
    "evaluate": ["evaluate", "RUN", "--data", "ROWS"],
    "export": ["export", "RUN", "NEW"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_the_code_of_a_model_that_a_recipe_names(command, foreign, place, call):
    folder, marker = foreign
    if command == "train --resume":
        (folder / "result.json").unlink()
    names = {"RUN": folder, "NEW": folder.parent / "new", "ROWS": place / "rows.jsonl"}
    words = []
    for word in COMMANDS[command]:
        for name, path in names.items():
            word = word.replace(name, str(path))
        words.append(word)
    code, _, err = call(*words)
    assert code == 2, err
    assert "error: " in err
    assert "Traceback" not in err
    if words[0] == "train":
        assert "trust_remote_code=True, and code of a model's repository runs only if" in err
    assert not marker.exists()


@pytest.mark.parametrize("said", [["--trust-remote-code"], ["trust_remote_code=true"]])
def test_code_runs_where_the_user_says_so_now(said, foreign, call):
    folder, marker = foreign
    (folder / "result.json").unlink()
    call("train", "--resume", "--output", folder, *said)
    assert marker.exists()


def test_a_finished_run_is_used_with_the_code_where_the_user_says_so_now(foreign, call):
    folder, marker = foreign
    call("generate", folder, "--prompt", "a", "--trust-remote-code")
    assert marker.exists()


def test_a_file_cannot_switch_remote_code_on_and_the_command_can(tmp_path):
    path = written(tmp_path / "mine.yaml", "trust_remote_code: true\n")
    refused("mine.yaml says trust_remote_code=True, and code of .* only if you say so", source=path)
    assert load("trust_remote_code=true", source=path).trust_remote_code is True
    assert load("trust_remote_code=false", source=path).trust_remote_code is False
    assert load(source=path, trust_remote_code=True).trust_remote_code is True
    assert saved_recipe(Path(written(tmp_path / "saved.yaml", yaml.safe_dump(
        {**BASE, "trust_remote_code": True})))).trust_remote_code is False  # fmt: skip
    hidden = written(tmp_path / "hidden.yaml", "parts: {trust_remote_code: true}\n")
    refused("unknown part 'trust_remote_code'", source=hidden)


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n"
    for old, new in zip("abcdefghijklmnopqrstuvw", "bcdefghijklmnopqrstuvwx", strict=True)
)
HOSTILE = {
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


@pytest.mark.parametrize("case", HOSTILE)
def test_yaml_that_is_more_than_plain_data_is_refused_at_once(case, tmp_path):
    text, message = HOSTILE[case]
    refused(message, source=written(tmp_path / "theirs.yaml", text))


def test_values_on_the_command_line_are_plain_data_too():
    refused(r"the value of 'lora=&a \[\*a\]' is not YAML: \*a stands", "lora=&a [*a]")
    refused("the value of 'lora={5: 1}' is not YAML: 5 is a key", "lora={5: 1}")


def test_lists_that_are_the_same_object_are_written_out(tmp_path):
    same = ["q_proj"]
    recipe = load("lora.target_modules=[q_proj]", "lmam.target_modules=[self_attn]")
    recipe.parts["lora"]["target_modules"] = recipe.parts["lmam"]["target_modules"] = same
    recipe.save(tmp_path)
    assert saved_recipe(tmp_path / "recipe.yaml") == recipe


def test_dates_are_texts_and_numbers_need_no_point():
    assert load("output=2024-01-01").output == "2024-01-01"
    warmed = load("training.lr_scheduler_kwargs={min_lr: 1e-5}", "lr_scheduler_type=cosine")
    assert warmed.training["lr_scheduler_kwargs"] == {"min_lr": 1e-5}


@pytest.mark.parametrize(
    "pair",
    [
        "rope_factor=.inf", "learning_rate=1e400", "lora.lora_alpha=.nan",
        "lora.rank_pattern={a: .inf}", "lr_scheduler_kwargs={a: [{b: .nan}]}",
    ],
)  # fmt: skip
def test_a_number_that_is_not_finite_is_refused(pair):
    refused("finite", pair)


def test_half_a_character_is_refused_before_it_cannot_be_written():
    refused(r"run_name='\\udc80' is not UTF-8 text", training={"run_name": "\udc80"})
    refused(r"output='\\udc80' is not UTF-8 text", output="\udc80")


SCHEDULES = {
    "unknown": ("cosine", "{bogus: 1}", "bogus"),
    "a text": ("cosine", "{num_cycles: x}", ""),
    "missing": ("cosine_with_min_lr", "{num_cycles: 1}", "min_lr"),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_an_argument_that_a_schedule_lacks_is_known_before_training(case):
    name, given, message = SCHEDULES[case]
    recipe = load(f"lr_scheduler_type={name}", f"lr_scheduler_kwargs={given}")
    with pytest.raises(ValueError, match=f"TrainingArguments: .*{message}") as error:
        training_arguments(recipe)
    assert "\n" not in str(error.value)
    good = load("lr_scheduler_type=cosine_with_min_lr", "lr_scheduler_kwargs={min_lr: 1e-5}")
    assert training_arguments(good).lr_scheduler_kwargs == {"min_lr": 1e-5}


def test_a_token_is_used_and_stored_nowhere(run):
    files = [path for path in run.run.rglob("*") if path.is_file()]
    assert {"recipe.yaml", "result.json", "training_args.bin"} <= {path.name for path in files}
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in json.dumps(run.result)


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


def test_damage_is_not_called_other_rows(run, tmp_path):
    folder = shutil.copytree(run.run, tmp_path / "run")
    (folder / "result.json").unlink()
    recipe = load_recipe(str(folder / "recipe.yaml"), [], {"output": str(folder)})
    for content, message in (
        (b"\x00\xff", "rows.sha256 is damaged"),
        (b"", "rows.sha256 is damaged"),
        (b"0" * 64, "is not what this run began with"),
    ):
        (folder / "rows.sha256").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            train(recipe, resume=True, quiet=True)


def test_settings_of_benchmarks_and_of_windows_are_refused_for_rows_of_ones_own(place, tmp_path):
    fixed = {"model": str(place / "llama"), "data": str(place / "rows.jsonl"), "method": "lmam",
             "output": str(tmp_path / "run")}  # fmt: skip
    for pair in ("protocol=bogus", "train_on=x", f"data_dir={tmp_path}", "eval_lengths=[8]",
                 "eval_windows=2"):  # fmt: skip
        with pytest.raises(ValueError, match=pair.partition("=")[0]) as error:
            train(load_recipe(None, [pair], fixed), quiet=True)
        assert "leave it out" in str(error.value)
        assert "\n" not in str(error.value)
