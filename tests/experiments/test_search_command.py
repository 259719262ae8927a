"""``lorada search``: trials as ordinary runs, going on after a kill, and mistakes in one line."""

import json
import re
import shlex

import pytest
from crashes import SETTINGS, number, same_files
from folders import bert_folder, llama_folder, rows_file

from lorada.experiments.search import space_of
from lorada.methods.autopeft.search_space import Space
from lorada.runs.folder.result import read_result
from lorada.runs.recipe import Recipe

ADAPTER = ("adapter/adapter_model.safetensors", "recipe.yaml")
LABELS = [{"text": "ab" * (i % 5 + 1), "label": "yn"[i % 2]} for i in range(24)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("search")
    bert_folder(place / "bert")
    llama_folder(place / "llama")
    rows_file(place / "rows.jsonl", LABELS)
    return place


def words(place, output, *more, model="bert", trials=3):
    return list(map(str, [
        "search", "--method", "autopeft", "--model", place / model, "--data", place / "rows.jsonl",
        "--eval-data", place / "rows.jsonl", "--output", output, "--trials", trials,
        *SETTINGS, "prefix.projection=8", *more,
    ]))  # fmt: skip


@pytest.fixture(scope="module")
def whole(lab, place):
    """An uninterrupted search of three trials, and its write points."""
    folder = place / "whole"
    reply = lab.command(words(place, folder), folder)
    assert reply["code"] == 0, reply["said"]
    return folder, reply["points"]


def state(folder):
    return json.loads((folder / "search.json").read_text())


def test_every_trial_is_a_run_of_its_configuration_that_was_scored(whole):
    folder, _ = whole
    found = state(folder)["trials"]
    assert len(found) == 3
    for i, trial in enumerate(found):
        result = read_result(folder / f"trial-{i:03d}")
        (metrics,) = result["metrics"].values()
        assert trial["accuracy"] == metrics["accuracy"]
        assert trial["parameters"] == result["parameters"]["percent"] > 0
        chosen, parts = trial["configuration"], result["recipe"]["parts"]
        assert result["recipe"]["method"] == "autopeft"
        assert parts["bottleneck"]["rank"] == chosen["serial"]
        assert parts["parallel_ffn"]["rank"] == chosen["parallel"]
        assert parts["prefix"]["length"] == chosen["prefix"]
        assert parts["prefix"]["projection"] == 8
        layers = [p["layers_to_transform"] for p in parts.values() if "layers_to_transform" in p]
        assert layers
        assert all(own == chosen["layers"] for own in layers)


@pytest.mark.parametrize(
    ("model", "space"),
    [
        ("roberta-base", Space(768, 12)),
        ("deberta-v3-base", Space(768, 12)),
        ("bart-large", Space(1024, 12)),  # a bit switches a layer of the encoder and of the decoder
        ("mbart-large", Space(1024, 12, ("parallel_ffn", "prefix"))),
    ],
)
def test_the_space_is_that_of_the_model(model, space):
    assert space_of(Recipe(model=model, output="-")) == space


KILLED_AT = {
    "before the third trial": r"os.mkdir trial-002",
    "within the third trial": r"torch.save trial-002/.*optimizer",
    "before the third is scored": r"os.rename trial-002/.*result.json",
    "before its outcome is kept": r"os.rename .*search.json",
}


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(
            moment, marks=[] if "within" in moment or "kept" in moment else pytest.mark.slow
        )
        for moment in KILLED_AT
    ],
)
def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(
    lab, place, whole, moment, tmp_path
):
    expected, points = whole
    at = number(points, KILLED_AT[moment])
    if moment == "before its outcome is kept":
        at = max(i for i, point in enumerate(points, 1) if re.search(KILLED_AT[moment], point))
    folder = tmp_path / "search"
    reply = lab.command(words(place, folder), folder, at=at, how="kill")
    assert reply["code"] == -9
    assert len(state(folder)["trials"]) == 2
    more = ["search", "--resume", "--output", str(folder), "--trials", "3"]
    reply = lab.command(more, folder)

    assert reply["code"] == 0, reply["said"]
    assert state(folder) == state(expected)
    for i in range(3):
        mine, theirs = (where / f"trial-{i:03d}" for where in (folder, expected))
        assert same_files(mine, theirs, ADAPTER[:1])


def test_the_result_is_printed_for_programs_and_the_next_command_runs(call, place, tmp_path):
    code, out, _ = call(*words(place, tmp_path / "search", trials=2), "--json")
    assert code == 0
    found = json.loads(out)
    assert len(found["trials"]) == 2
    assert all(row in found["trials"] for row in found["pareto"])
    code, out, _ = call("search", "--resume", "--output", tmp_path / "search", "--trials", 2)
    assert code == 0
    assert "trials that no other beats" in out
    command = shlex.split(out.partition("next: ")[2])
    assert command[:2] == ["lorada", "train"]
    code, out, err = call(*command[1:])
    assert code == 0, err
    best = read_result(tmp_path / "search" / "best")
    assert best["parameters"]["percent"] == found["pareto"][-1]["parameters"]
    assert best["seed"] == 43


def test_an_interrupted_search_says_how_it_goes_on(call, place, tmp_path, monkeypatch):
    import lorada.experiments.search as module

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", interrupted)
    code, _, err = call(*words(place, tmp_path / "search"))
    assert code == 130
    said = "lorada search --resume --trials 3 --sampler random --output"
    assert said in " ".join(err.split())


def test_a_trial_whose_loss_diverges_counts_as_wrong_throughout(call, place, tmp_path, caplog):
    output = tmp_path / "search"
    code, out, err = call(*words(place, output, "learning_rate=1e38", trials=1), "--json")
    assert code == 0, err
    (trial,) = json.loads(out)["trials"]
    assert trial["accuracy"] == 0
    assert trial["parameters"] > 0
    assert "counted as 0 % right" in caplog.text


def test_overwrite_removes_the_runs_of_the_search_and_nothing_else(call, place, tmp_path):
    output = tmp_path / "search"
    assert call(*words(place, output, trials=2))[0] == 0
    (output / "notes.txt").write_text("mine")
    (output / "trial-001" / "notes.txt").write_text("mine")
    assert call(*words(place, output, "--overwrite", "training.seed=1", trials=1))[0] == 0
    names = {str(path.relative_to(output)) for path in output.rglob("*")}
    assert {"notes.txt", "trial-001/notes.txt", "trial-000/result.json"} <= names
    assert "trial-001/result.json" not in names
    assert len(state(output)["trials"]) == 1


MISTAKES = {
    "no trials": (["--trials", "0"], "trials=0 must lie between 1 and"),
    "too many trials": (["--trials", "99999"], "trials=99999 must lie between 1 and 1026"),
    "unknown sampler": (["--sampler", "randon"], "unknown sampler 'randon'; did you mean random"),
    "another method": (["--method", "lora"], "lorada search is for --method autopeft, not lora"),
    "a size": (["bottleneck.rank=4"], "bottleneck.rank is what the search chooses: leave it out"),
    "layers": (["prefix.layers_to_transform=[1]"], "layers_to_transform is what the search"),
    "nothing to resume": (["--resume"], "holds no search to resume"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(call, place, tmp_path, case):
    more, message = MISTAKES[case]
    code, _, err = call(*words(place, tmp_path / "search", *more))
    assert code == 2
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "search").exists()


def test_rows_without_held_out_ones_are_refused(call, place, tmp_path):
    code, _, err = call("search", "--model", place / "bert", "--output", tmp_path / "search")
    assert code == 2
    assert "error: a search scores on held-out rows: pass --eval-data FILE" in err


def test_a_folder_with_a_search_or_a_run_is_refused(call, place, whole, tmp_path):
    folder, _ = whole
    code, _, err = call(*words(place, folder))
    assert code == 2
    assert "already holds a search: use --resume, --overwrite or another --output" in err
    code, _, err = call(*words(place, folder / "trial-000"))
    assert code == 2
    assert "holds a run: choose another --output" in err
    code, _, err = call(*words(place, folder, "--resume", "max_length=16"))
    assert code == 2
    assert "the run to resume had max_length=32, not 16" in err


@pytest.mark.slow
def test_a_decoder_is_searched_too(call, place, tmp_path):
    code, out, err = call(*words(place, tmp_path / "search", model="llama"))
    assert code == 0, err
    assert "Pareto" in out or "trial" in out
