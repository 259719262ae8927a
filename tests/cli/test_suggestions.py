"""Every command that a command suggests is one that works, whatever its paths look like."""

import shutil
import subprocess
from pathlib import Path

import pytest
from folders import bert_folder, llama_folder, rows_file, split_file

from lorada.support import models
from lorada.training.models import loading

SETTINGS = ["max_steps=2", "max_length=32", "training.report_to=[]", "max_new_tokens=4"]
RUNS = {
    "a run[/y]": ("llama [red]", "lmam", "my rows", []),
    "labelled": ("bert", "lmam", "labels", []),
}
LABELS = [{"text": "ab" * (i % 3 + 1), "label": "yn"[i % 2]} for i in range(12)]
RTE = [{"sentence1": "ab" * (i % 3 + 1), "sentence2": "a", "label": i % 2} for i in range(12)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with blanks and brackets, of models, rows, and runs of each kind."""
    place = tmp_path_factory.mktemp("home") / "my [bold] runs[/y] 'of' $x"
    place.mkdir(parents=True)
    llama_folder(place / "llama [red]", max_position_embeddings=256)
    bert_folder(place / "bert", hidden_size=48, num_attention_heads=12)
    rows_file(place / "my rows.jsonl")
    rows_file(place / "labels.jsonl", LABELS)
    for split in ("train", "validation"):
        split_file(place / "data" / "glue" / "rte", split, RTE)
    return place


@pytest.fixture
def at_home(place, monkeypatch):
    """In that folder, with tiny models under the names of the packaged ones."""
    folders = {"smollm2-135m": place / "llama [red]", "minilm-l6": place / "bert"}
    monkeypatch.setattr(loading, "_packaged_folder", folders.get)
    monkeypatch.setattr(models, "package_folder", folders.get)
    monkeypatch.setenv("LORADA_DATA", str(place / "data"))
    monkeypatch.chdir(place)
    return place


def words_of(command):
    """The words of a command as a shell would hand them over."""
    script = f"printf '%s\\0' {command}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def next_of(call, *words):
    """The words of the command that a command suggests."""
    code, out, err = call(*words)
    assert code == 0, err
    (line,) = (line for line in out.splitlines() if line.startswith("next: "))
    return words_of(line.removeprefix("next: "))


def follow(call, *words, **places):
    """Run a command, and the one that it suggests, with something in place of words in capitals."""
    found = next_of(call, *words)
    filled = [str(places.get(word, word)) for word in found]
    assert not [word for word in filled if word.isupper()], filled
    assert filled[0] == "lorada"
    next_of(call, *filled[1:])
    return found


TRAIN = ["train", "--model", "llama [red]", "--data", "my rows.jsonl", *SETTINGS]


@pytest.mark.more
def test_a_training_suggests_to_score_it(call, at_home):
    follow(call, *TRAIN, "--output", "own [1]", FILE="my rows.jsonl")
    benchmark = ["--method", "lora", "--task", "rte", "--model", "bert", "--output", "rte"]
    assert follow(call, "train", *benchmark, *SETTINGS)[1:] == ["evaluate", "rte"]


@pytest.mark.more
def test_a_run_can_be_used_as_is_suggested(call, at_home, folder):
    fill = {"TEXT": "1 + 1 =", "FILE": "my rows.jsonl"}
    run = folder("a run[/y]").relative_to(at_home)
    assert follow(call, "evaluate", run, "--data", "my rows.jsonl", **fill)[1] == "generate"
    assert follow(call, "generate", run, "--prompt", "[/x] a", **fill)[1] == "evaluate"
    follow(call, "plot", "1", run, "--output", "pictures", **fill)
    more = ["--data", "my rows.jsonl", "--rows", 1, "--output", "pictures"]
    follow(call, "plot", "3", run, *more, **fill)


def test_a_classifier_is_asked_exported_and_described(call, at_home, folder):
    fill, labelled = {"TEXT": "ab", "FILE": "labels.jsonl"}, folder("labelled")
    found = follow(call, "evaluate", labelled, "--data", "labels.jsonl", **fill)
    assert found[1] == "predict"
    page = ["--text", "a $b$ [/x]", "--output", "page.html", "--overwrite"]
    assert follow(call, "explore", labelled, *page, **fill)[1] == "predict"
    assert next_of(call, "export", labelled, "whole [model]")[0] == "cat"
    assert words_of("$(cat 'whole [model]/README.md')")


def test_what_is_counted_can_be_trained(call, at_home):
    fill = {"FILE": "my rows.jsonl", "MODEL": "llama [red]"}
    counted = ["params", "--method", "lora", "--model", "llama [red]", "lora.r=2"]
    found = next_of(call, *counted)
    assert found[-1] == "lora.r=2"
    words = [fill.get(word, word) for word in found[1:]]
    assert next_of(call, *words, *SETTINGS)[1] == "evaluate"
    shutil.rmtree("runs/mine")
    found = next_of(call, "params", "--method", "lora", "--model", "llama-7b")
    assert "MODEL" in found


def test_lists_suggest_what_there_is(call, at_home):
    fill = {"FILE": "my rows.jsonl", "MODEL": "bert"}
    assert follow(call, "methods")[1:] == ["methods", "lorada_la"]
    found = next_of(call, "methods", "bitfit")
    assert next_of(call, *[fill.get(word, word) for word in found[1:]])[1] == "train"
    words = [fill.get(word, word) for word in next_of(call, "tasks")[1:]]
    short = ["max_steps=1", "max_length=192", "training.report_to=[]"]
    assert next_of(call, *words, *short)[1] == "evaluate"


def test_a_stopped_training_says_how_it_goes_on(call, at_home, monkeypatch):
    from lorada.training import train

    stopped = train.Trained(Path("my [x] run"), None, steps=1, interrupted=True)
    monkeypatch.setattr(train, "train", lambda *_, **__: stopped)
    code, _, err = call(*TRAIN, "--output", "my [x] run")
    assert code == 130
    (line,) = (line for line in err.splitlines() if line.startswith("next: "))
    words = words_of(line.removeprefix("next: "))
    assert words == ["lorada", "train", "--resume", "--output", "my [x] run"]
