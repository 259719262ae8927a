"""``lorada train`` in two processes: one saves, what it saves is that of one process, one speaks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import assert_close
from folders import ROWS, bert_folder, llama_folder, rows_file
from safetensors.torch import load_file

from lorada.files import SCRATCH
from lorada.run.evaluate import evaluate
from lorada.run.loaded import load_run
from lorada.run.lock import LOCK_FILE
from lorada.run.result import read_result

WORKER = str(Path(__file__).with_name("commands_worker.py"))
LORADA = str(Path(sys.executable).with_name("lorada"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STEPS = ["max_steps=4", "save_steps=2", "logging_steps=1", "training.report_to=[]", "max_length=32"]
LABELS = [
    {"text": f"{a} and {b}", "label": "much" if a + b > 5 else "little"}
    for a in range(6)
    for b in range(6)
]
CHOICES = [
    {"prompt": f"{a} + {b} =", "candidates": [f" {a + b}", f" {a + b + 1}"], "answer": 0}
    for a in range(6)
    for b in range(6)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Tiny models without dropout, which every process would draw by itself, and rows."""
    place = tmp_path_factory.mktemp("place")
    llama_folder(place / "llama", attention_dropout=0.0, initializer_range=0.2)
    bert_folder(place / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    for name, rows in {"texts": ROWS, "labels": LABELS, "choices": CHOICES}.items():
        rows_file(place / f"{name}.jsonl", rows)
    return place


def words(place, model, rows, method, run, *more):
    data = str(place / f"{rows}.jsonl")
    dropout = {"lorada_la": ["lora.lora_dropout=0", "bottleneck.dropout=0"], "full": []}
    return [
        "train", "--method", method, "--model", str(place / model), "--data", data, "--output",
        str(run), f"eval_data={data}", *dropout.get(method, []), *STEPS, *more,
    ]  # fmt: skip


def alone(place, call, *how):
    """The same run in this process, in which a batch is as large as those of two together."""
    code, _, said = call(*words(place, *how, "per_device_train_batch_size=4"))
    assert code == 0, said
    return how[3]


def launched(command, **variables):
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=600, check=False
    )


def launch_all(tmp_path, commands, *options):
    """Commands after one another in one launch of two processes; the codes of both, and output."""
    file = tmp_path / "commands.json"
    file.write_text(json.dumps(commands))
    done = launched([*TORCHRUN, WORKER, str(file), *options])
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(Path(f"{file}.codes{rank}").read_text()) for rank in (0, 1)], done


def weights_of(run):
    (file,) = (run / "adapter" if (run / "adapter").is_dir() else run / "model").glob("*.safetensors")
    return load_file(file)


def assert_same_run(run, other):
    """One run, whole, of two processes, with the losses, weights and scores of the other."""
    result, expected = read_result(run), read_result(other)
    assert (result["processes"], expected["processes"]) == (2, 1)
    assert result["parameters"] == expected["parameters"]
    assert len(result["history"]) == len(expected["history"]) == 4
    for key in ("loss", "effect_size"):
        here, there = ([e[key] for e in r["history"] if key in e] for r in (result, expected))
        assert_close(torch.tensor(here), torch.tensor(there))
    weights, others = weights_of(run), weights_of(other)
    assert weights.keys() == others.keys()
    for name in weights:
        assert_close(weights[name], others[name])
    left = [p for p in run.rglob("*") if p.name.startswith(SCRATCH) or p.name == LOCK_FILE]
    assert left == []
    assert (run / "loss.png").is_file()


def assert_scores(run, other):
    """A fresh process scores the run as this one does, and as the run of one process."""
    done = launched([LORADA, "evaluate", str(run), "--json"])
    assert done.returncode == 0, done.stderr
    scores, here, there = json.loads(done.stdout), evaluate(load_run(run)), evaluate(load_run(other))
    assert scores == here
    assert scores.keys() == there.keys()
    for name in scores.keys() - {"sha256"}:
        assert scores[name] == pytest.approx(there[name], rel=1e-5), name


def test_two_processes_save_one_adapter_which_is_that_of_one_process(place, tmp_path, call):
    how = ("llama", "texts", "lorada_la")
    command = words(place, *how, tmp_path / "two", "training.per_device_train_batch_size=2")
    done = launched([*TORCHRUN, "-m", "lorada.cli", *command, "max_length=99"])
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("next: lorada evaluate") == 1
    assert done.stdout.count("loss curve: ") == 1
    assert done.stderr.count("is cut to the") == 1
    assert_same_run(tmp_path / "two", alone(place, call, *how, tmp_path / "one", "max_length=99"))
    assert_scores(tmp_path / "two", tmp_path / "one")


RUNS = [
    ("llama", "texts", "lorada_la"),
    ("bert", "labels", "lora", "lora.lora_dropout=0"),
    ("llama", "choices", "lora", "lora.lora_dropout=0"),
    ("llama", "texts", "full"),
    ("llama", "texts", "prefix", "prefix.length=3", "prefix.projection=8"),
]
BATCH = ("training.per_device_train_batch_size=2",)
# By itself accelerate shares BERT's embeddings out twice: with the module that holds them, and alone.
FSDP = ("training.fsdp=true", "training.fsdp_config={transformer_layer_cls_to_wrap: {}}")
LAYERS = {"llama": "LlamaDecoderLayer", "bert": "BertLayer"}


def run_all(place, folder, runs, *more):
    """Where runs of two processes are to be, and their commands."""
    folders = [folder / f"two-{number}" for number, _ in enumerate(runs)]
    return folders, [
        words(place, *run[:3], at, *BATCH, *run[3:], *(m.replace("{}", LAYERS[run[0]]) for m in more))
        for run, at in zip(runs, folders, strict=True)
    ]


def all_alone(place, call, tmp_path, runs):
    return [
        alone(place, call, *run[:3], tmp_path / f"alone-{number}", *run[3:])
        for number, run in enumerate(runs)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("shared", [(), FSDP], ids=["ddp", "fsdp2"])
def test_all_kinds_of_rows_and_methods_are_saved_whole(shared, place, tmp_path, call):
    folders, commands = run_all(place, tmp_path, RUNS, *shared)
    codes, done = launch_all(tmp_path, commands, *(["fsdp"] if shared else []))
    assert codes == [[0] * len(RUNS)] * 2, done.stderr
    for folder, other in zip(folders, all_alone(place, call, tmp_path, RUNS), strict=True):
        assert_same_run(folder, other)
    for folder, other in zip(folders[:2], ("alone-0", "alone-1"), strict=False):
        assert_scores(folder, tmp_path / other)
