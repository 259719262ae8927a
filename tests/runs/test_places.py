"""Runs are used from any folder, and kept where nothing can be written."""

import errno
import json
import shutil
from unittest.mock import Mock

import pytest
import yaml
from folders import llama_folder, rows_file

from lorada.runs import result
from lorada.training.load_recipe import load_recipe

SETTINGS = ["max_steps=2", "max_length=32", "training.report_to=[]", "max_new_tokens=4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which a run was trained by relative paths."""
    from lorada.training.train import train

    place = tmp_path_factory.mktemp("places")
    llama_folder(place / "llama", max_position_embeddings=256)
    rows_file(place / "rows.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        options = {"method": "lora", "model": "llama", "data": "rows.jsonl",
                   "eval_data": "rows.jsonl", "output": "run"}  # fmt: skip
        recipe = load_recipe(None, [*SETTINGS, "training.save_steps=1"], options)
        train(recipe.with_absolute_paths(), quiet=True)
        train(recipe.model_copy(update={"output": "old"}), quiet=True)
    return place


def test_a_run_of_relative_paths_is_used_from_any_folder(works, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trained / "run"
    assert json.loads(works("evaluate", run, "--json")[0])["n"] == 36
    works("generate", run, "--prompt", "1 + 1 =")
    works("export", run, tmp_path / "merged")
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(trained / "llama")


def test_a_training_command_keeps_absolute_paths_in_its_run(works, trained, monkeypatch):
    monkeypatch.chdir(trained)
    words = ["--model", "llama", "--data", "rows.jsonl", "eval_data=builtin:syllogisms_test.jsonl"]
    start = ["--from", "old/adapter", "--method", "lora", "--output", "new"]
    works("train", *words, *start, *SETTINGS, "max_length=192")
    recipe = yaml.safe_load((trained / "new" / "recipe.yaml").read_text())
    assert recipe["model"] == str(trained / "llama")
    assert recipe["data"] == str(trained / "rows.jsonl")
    assert recipe["from_adapter"] == str(trained / "old/adapter")
    assert recipe["eval_data"] == "builtin:syllogisms_test.jsonl"


def test_names_that_are_no_paths_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm-l6").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("a file")
    for name in ("minilm-l6", "a/b", "a/c", "llama-7b"):
        recipe = load_recipe(None, [], {"model": name, "output": "-"})
        assert recipe.with_absolute_paths().model == name


@pytest.mark.parametrize("how", ["run, by itself", "run, with its paths", "old, with its paths"])
def test_a_run_goes_on_however_its_paths_are_written(
    works, mistake, trained, tmp_path, monkeypatch, how
):
    name = how.partition(",")[0]
    run = shutil.copytree(trained / name, tmp_path / "run")
    (run / "result.json").unlink()
    monkeypatch.chdir(trained if name == "old" else tmp_path)
    (tmp_path / "link").symlink_to(trained)
    words = ["train", "--resume", "--output", run, "--json"]
    if "with" in how:
        words += ["--model", tmp_path / "link" / "llama", "--data", trained / "rows.jsonl"]
        words += [f"eval_data={trained / 'rows.jsonl'}", "--method", "lora", *SETTINGS]
        words += ["training.save_steps=1"]
    assert json.loads(works(*words)[0])["resumed_from"] == "checkpoint-2"
    (run / "result.json").unlink()
    other = shutil.copy(trained / "rows.jsonl", tmp_path / "other.jsonl")
    if "with" in how:
        assert f"had data='{trained / 'rows.jsonl'}'" in mistake(*words, "--data", other)
    else:
        out, _ = works(*words[:-1])
        assert " steps, those after checkpoint-2 in " in " ".join(out.split())


def test_answers_and_scores_that_cannot_be_kept_are_printed(works, trained, monkeypatch, caplog):
    refuse = Mock(side_effect=OSError(errno.EROFS, "it cannot be written"))
    before = (trained / "run" / "result.json").read_text()
    monkeypatch.setattr(result, "write_atomic", refuse)
    assert json.loads(works("evaluate", trained / "run", "--json")[0])["n"] == 36
    path = trained / "run" / "result.json"
    said = [r.getMessage() for r in caplog.records if r.name == "lorada.runs.result"]
    kept = f"could not be kept in {path}: it cannot be written"
    assert said == [f"the answers {kept.replace('result.json', 'predictions.jsonl')}",
                    f"the scores {kept}"]  # fmt: skip
    assert (trained / "run" / "result.json").read_text() == before
