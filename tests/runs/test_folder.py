"""Run folders: what may be written, removed and resumed, and what --from takes over."""

import re
import shutil
from functools import partial
from pathlib import Path

import pytest
from folders import ROWS, adapter_weights, llama_folder, refused, rows_file
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from trained_runs import QUICK, PressCtrlC, assert_same, run_recipe
from transformers import AutoModelForCausalLM

from lorada import LmamConfig, LoradaConfig
from lorada.inference.load import load_run
from lorada.runs.checkpoints import STATE_FILE, last_whole_checkpoint
from lorada.runs.folder import Start, begin, check_folder, refuse_target
from lorada.training.parameter_counts import parameters_of
from lorada.training.train import train

recipe = partial(run_recipe, [*QUICK, "max_steps=4"], rows="rows", method="lorada_la")


@pytest.fixture(scope="module")
def finished(place):
    """A finished run with its checkpoints; copy it before changing it."""
    return train(recipe(place, place / "finished", "save_steps=2"), quiet=True).run


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


BAD_OVERWRITES = {
    "a setting that does not fit": (["lmam.heads=3"], {}),
    "rows that are not there": ([], {"data": "nope.jsonl"}),
    "a Trainer that refuses": (["training.push_to_hub=3"], {}),
}


@pytest.mark.parametrize("case", BAD_OVERWRITES)
def test_overwrite_removes_nothing_until_everything_else_is_in_order(
    place, finished, tmp_path, case
):
    overrides, options = BAD_OVERWRITES[case]
    run = shutil.copytree(finished, tmp_path / "run")
    before = content(run)
    with pytest.raises((ValueError, OSError)):
        train(recipe(place, run, *overrides, **options), overwrite=True, quiet=True)
    assert content(run) == before


def test_overwrite_never_removes_what_a_run_did_not_write(place, tmp_path):
    mine = tmp_path / "runs" / "a"
    mine.mkdir(parents=True)
    (mine / "result.json").write_text("{}")
    refused("it is not a run", lambda: train(recipe(place, tmp_path), overwrite=True, quiet=True))
    assert (mine / "result.json").exists()


def test_overwrite_removes_what_a_comparison_wrote_beside_the_run_and_alone_that_is_no_run(
    place, finished, tmp_path
):
    run = shutil.copytree(finished, tmp_path / "run")
    started = tmp_path / "started"  # a job's folder before its training has begun
    started.mkdir()
    for name in ("job.log", "trial.json", "as_it_is.json"):
        (run / name).write_text("{}")
        (started / name).write_text("{}")
    (run / "notes.txt").write_text("mine")
    another = recipe(place, run)
    start = check_folder(another, resume=False, overwrite=True)
    begin(another, start, "0" * 64)
    assert {path.name for path in run.iterdir()} == {"notes.txt", "recipe.yaml", "rows.sha256"}
    assert check_folder(recipe(place, started), resume=True, overwrite=False) == Start()


def test_overwrite_does_not_delete_what_the_run_reads(place, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(place / "llama", run / "model")
    shutil.copytree(place / "llama", run / "mine")  # which --overwrite leaves there
    rows_file(run / "rows.jsonl")
    rows_file(run / "predictions.jsonl")
    before = content(run)
    given = {"from_adapter": "adapter", "model": "model", "data": "predictions.jsonl"}
    for name, read in given.items():
        start = recipe(place, run, **{name: str(run / read)})
        said = f"would delete .*/run/{read}, which is this run's {name}: choose another --output"
        refused(said, lambda start=start: train(start, overwrite=True, quiet=True))
        assert content(run) == before
    kept = {"model": str(run / "mine"), "data": str(run / "rows.jsonl")}
    check_folder(recipe(place, run, **kept), resume=False, overwrite=True)


def unfinished(finished, target):
    run = shutil.copytree(finished, target)
    (run / "result.json").unlink()
    return run


# What a process may leave that is killed before the state is written to its end.
HALF = {
    "no state": Path.unlink,
    "half a state": lambda path: path.write_text('{"a"'),
    "another state": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize("case", HALF)
def test_resume_goes_back_to_the_last_whole_checkpoint_bit_for_bit(
    place, finished, tmp_path, case, caplog
):
    run = unfinished(finished, tmp_path / "run")
    HALF[case](run / "checkpoint-4" / STATE_FILE)
    assert last_whole_checkpoint(run) == run / "checkpoint-2"
    resumed = train(recipe(place, run, "save_steps=2"), resume=True, quiet=True)
    assert resumed.result.resumed_from == "checkpoint-2"
    assert "checkpoint-4 was not written to its end" in caplog.text
    assert_same(adapter_weights(run), adapter_weights(finished))
    assert last_whole_checkpoint(run) == run / "checkpoint-4"  # which has been written anew


def test_a_run_without_a_whole_checkpoint_starts_from_the_beginning(
    place, finished, tmp_path, caplog
):
    run = unfinished(finished, tmp_path / "run")
    for step in (2, 4):
        (run / f"checkpoint-{step}" / STATE_FILE).unlink()
    resumed = train(recipe(place, run, "save_steps=2"), resume=True, quiet=True)
    assert resumed.result.resumed_from is None
    assert "has no whole checkpoint yet: starting from the beginning" in caplog.text


def test_a_checkpoint_with_a_file_that_was_cut_is_passed_over_and_the_file_named(
    place, finished, tmp_path, caplog
):
    run = unfinished(finished, tmp_path / "run")
    again, last = recipe(place, run, "save_steps=2"), run / "checkpoint-4"
    files = [
        p for p in last.iterdir() if p.name != STATE_FILE and p.suffix not in (".md", ".jinja")
    ]
    assert len(files) > 7
    for path in files:
        whole = path.read_bytes()
        for cut in (b"", whole[: len(whole) // 2], whole[:-3]):
            path.write_bytes(cut)
            caplog.clear()
            assert last_whole_checkpoint(run) == run / "checkpoint-2"
            assert f"{last} is damaged ({path.name}: " in caplog.text
        path.write_bytes(whole)
    path.write_bytes(b"")
    assert train(again, resume=True, quiet=True).result.resumed_from == "checkpoint-2"


def test_a_checkpoint_that_is_written_again_is_not_whole_until_its_end(
    place, tmp_path, monkeypatch
):
    whole, save = [], PeftModel.save_pretrained

    def watched(model, folder, **settings):
        whole.append(last_whole_checkpoint(tmp_path))
        save(model, folder, **settings)

    monkeypatch.setattr(PeftModel, "save_pretrained", watched)
    asked = recipe(place, tmp_path, "max_steps=18", "save_strategy=epoch")
    assert train(asked, quiet=True, callbacks=[PressCtrlC(8)]).interrupted
    assert whole == [None, None]


def test_what_is_made_of_a_run_is_never_written_into_it(tmp_path, monkeypatch):
    (run := tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    for target in (run, run / "export", run / "a/b", Path("run/export"), run / "../run/export"):
        refused("lies in the run itself", lambda target=target: refuse_target(run, target))
    for target in (tmp_path / "run-export", tmp_path / "other/run"):
        refuse_target(run, target)


def test_resume_refuses_other_settings_and_rows(place, finished, tmp_path):
    run = unfinished(finished, tmp_path / "run")
    other = recipe(place, run, "save_steps=2", "lora.lora_alpha=3")
    refused("the run to resume had parts=", lambda: train(other, resume=True, quiet=True))
    faster = recipe(place, run, "save_steps=2", "learning_rate=0.5")
    refused("the run to resume had training=", lambda: train(faster, resume=True, quiet=True))
    rows = rows_file(tmp_path / "rows.jsonl", ROWS[:20])
    saved = run / "recipe.yaml"
    saved.write_text(saved.read_text().replace(str(place / "rows.jsonl"), str(rows)))
    with pytest.raises(ValueError, match="has other rows than this run began with"):
        train(recipe(place, run, "save_steps=2", data=str(rows)), resume=True, quiet=True)


@pytest.mark.parametrize("how", ["fewer tensors", "another depth"])
def test_an_adapter_that_lacks_tensors_is_refused(place, finished, tmp_path, how):
    run = shutil.copytree(finished, tmp_path / "run")
    path = run / "adapter" / "adapter_model.safetensors"
    if how == "fewer tensors":
        save_file(dict(list(load_file(path).items())[:-1]), path)
    else:
        deep = llama_folder(tmp_path / "deep", num_hidden_layers=3)
        text = (run / "recipe.yaml").read_text()
        (run / "recipe.yaml").write_text(text.replace(str(place / "llama"), str(deep)))
    refused("incomplete, or was saved for another architecture", lambda: load_run(run))
    if how == "fewer tensors":
        start = recipe(place, tmp_path / "new", from_adapter=str(run / "adapter"))
        with pytest.raises(ValueError, match="incomplete, or was saved for another architecture"):
            train(start, quiet=True)


def test_what_is_counted_before_a_training_has_the_parts_that_from_brings(place, tmp_path):
    first = recipe(place, tmp_path / "first", "lora.r=16", "max_steps=1", method="lora")
    start = str(train(first, quiet=True).run / "adapter")
    again = recipe(place, tmp_path / "again", "max_steps=1", method="lora+lmam", from_adapter=start)
    trained = train(again, quiet=True).result.parameters
    assert parameters_of(again)["trainable"] == trained.trainable
    ours = recipe(place, tmp_path / "new", "lora.r=4", method="lora", from_adapter=start)
    for use in (parameters_of, partial(train, quiet=True)):
        refused(r"brings its own lora part .* lora\.r", partial(use, ours))


def test_from_keeps_modules_that_were_saved_whole(place, tmp_path):
    stack = LoradaConfig(parts=[LmamConfig(length=8)], modules_to_save=["lm_head"])
    base = AutoModelForCausalLM.from_pretrained(place / "llama")
    get_peft_model(base, stack).save_pretrained(tmp_path / "stack")
    start = recipe(place, tmp_path / "run", method="lora", from_adapter=str(tmp_path / "stack"))
    run = train(start, quiet=True).run
    keys = adapter_weights(run).keys()
    assert any("lm_head" in key for key in keys)
    assert any("lora_A" in key for key in keys)


ON = "free space, then run the command again with --resume"
# The write from which on no file can have more bytes, and what the command says to do.
FULL = {
    "the recipe": ("recipe.yaml", 0, "Free space, then run the command again"),
    "weights": ("checkpoint-4/README", 6000, ON),
    "optimizer": ("checkpoint-4/adapter_config", 6000, ON),
    "the result": ("result.json", 0, ON),
}


@pytest.mark.parametrize("case", FULL)
def test_a_disk_that_fills_up_is_one_line_and_nothing_is_lost(lab, tmp_path, case):
    (at, limit, remedy), run = FULL[case], tmp_path / "run"
    reply = lab.train(run, at=at, limit=limit, full=True)
    assert reply["code"] == 2, reply["said"]
    assert "Traceback" not in reply["said"]
    lines = reply["said"].strip().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], reply["said"]
    assert re.match(rf"error: could not save {run}.*: .+\. ", lines[-1])
    assert lines[-1].endswith(remedy)
    lab.check(run, reply["steps"])
