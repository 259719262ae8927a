"""``lorada train`` in two processes: one saves what one alone would have saved, and one speaks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import assert_close
from folders import ROWS
from paths import HELPERS
from programs import printed
from safetensors.torch import load_file

from lorada.runs.folder import LOCK_FILE
from lorada.runs.result import read_result
from lorada.support.files import SCRATCH

WORKER = str(HELPERS / "commands_worker.py")
LORADA = str(Path(sys.executable).with_name("lorada"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STEPS = ["max_steps=4", "save_steps=2", "logging_steps=1", "training.report_to=[]", "max_length=32"]
LABELS = [{"text": row["prompt"], "label": "yn"[i % 2]} for i, row in enumerate(ROWS)]
CHOICES = [
    {"prompt": row["prompt"], "candidates": [row["response"], " none"], "answer": 0} for row in ROWS
]
ROW_FILES = {"texts": None, "labels": LABELS, "choices": CHOICES}
# No dropout, which every process would draw by itself.
LLAMA = {"attention_dropout": 0.0, "initializer_range": 0.2}
BERT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def words(place, model, rows, method, run, *more):
    data = str(place / f"{rows}.jsonl")
    dropout = {"lorada_la": ["lora.lora_dropout=0", "bottleneck.dropout=0"], "full": []}
    return [
        "train", "--method", method, "--model", str(place / model), "--data", data, "--output",
        str(run), f"eval_data={data}", *dropout.get(method, []), *STEPS, *more,
    ]  # fmt: skip


def alone(place, works, *how):
    """The same run in this process, in which a batch is as large as those of two together."""
    works(*words(place, *how, "per_device_train_batch_size=4"))
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
    (file,) = (*run.glob("adapter/*.safetensors"), *run.glob("model/*.safetensors"))
    return load_file(file)


def assert_whole(run, other):
    """One run, whole, of two processes, with all that the other has, which one process trained."""
    result, expected = read_result(run), read_result(other)
    assert (result.processes, expected.processes) == (2, 1)
    assert result.parameters == expected.parameters
    assert len(result.history) == len(expected.history) == 4
    assert weights_of(run).keys() == weights_of(other).keys()
    left = [p for p in run.rglob("*") if p.name.startswith(SCRATCH) or p.name == LOCK_FILE]
    assert left == []


def assert_same_run(run, other):
    """A whole run, with the losses and weights of the other."""
    assert_whole(run, other)
    histories = [read_result(folder).history for folder in (run, other)]
    for key in ("loss", "relative_norm"):
        here, there = ([e[key] for e in history if key in e] for history in histories)
        assert_close(torch.tensor(here), torch.tensor(there))
    weights, others = weights_of(run), weights_of(other)
    for name in weights:
        assert_close(weights[name].double(), others[name].double())


@pytest.mark.more
def test_two_processes_save_one_adapter_which_is_that_of_one_process(place, tmp_path, works):
    how = ("llama", "texts", "lorada_la")
    command = words(place, *how, tmp_path / "two", "training.per_device_train_batch_size=2")
    done = launched([*TORCHRUN, "-m", "lorada.cli", *command, "max_length=99"])
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("next: lorada evaluate") == 1
    assert done.stderr.count("is cut to the") == 1
    assert_whole(tmp_path / "two", alone(place, works, *how, tmp_path / "one", "max_length=99"))
    scores, there = (
        json.loads(printed(LORADA, "evaluate", tmp_path / run, "--json", OMP_NUM_THREADS="1"))
        for run in ("two", "one")
    )
    assert scores.keys() == there.keys()
    for in_words in ("commonest", "unfound"):
        assert scores.pop(in_words) == there.pop(in_words)
    # Hashes are of weights too, which differ in their last digits.
    for name in scores.keys() - {"sha256", "answers_sha256"}:
        assert scores[name] == pytest.approx(there[name], rel=1e-5), name


RUNS = [
    ("llama", "texts", "lorada_la"),
    ("bert", "labels", "lora", "lora.lora_dropout=0"),
    ("llama", "choices", "lora", "lora.lora_dropout=0"),
    ("llama", "texts", "full"),
    ("llama", "texts", "prefix", "prefix.length=3", "prefix.projection=8"),
]
BATCH = ("training.per_device_train_batch_size=2",)
# Unless it is told which layers to share out, accelerate does so twice with BERT's embeddings.
FSDP = (
    "training.fsdp=true", "training.fsdp_config={transformer_layer_cls_to_wrap: {}}",
    "activation_checkpointing=full",
)  # fmt: skip
LAYERS = {"llama": "LlamaDecoderLayer", "bert": "BertLayer"}


@pytest.mark.slow
@pytest.mark.fp64
@pytest.mark.parametrize("shared", [(), FSDP], ids=["ddp", "fsdp2"])
def test_all_kinds_of_rows_and_methods_are_saved_whole(shared, place, tmp_path, works):
    runs = RUNS[::2] if shared else RUNS[1::2]
    commands = []
    for number, (model, rows, method, *settings) in enumerate(runs):
        settings += [*BATCH, *(setting.replace("{}", LAYERS[model]) for setting in shared)]
        commands.append(words(place, model, rows, method, tmp_path / f"two-{number}", *settings))
    codes, done = launch_all(tmp_path, commands, *(["fsdp"] if shared else []))
    assert codes == [[0] * len(runs)] * 2, done.stderr
    for number, (model, rows, method, *settings) in enumerate(runs):
        one = alone(place, works, model, rows, method, tmp_path / f"alone-{number}", *settings)
        assert_same_run(tmp_path / f"two-{number}", one)


@pytest.mark.slow
def test_a_map_has_the_factors_that_it_learns_under_fsdp_with_mixed_dtypes(place, tmp_path):
    """Weights that are cast to bf16 on their way would give a map that was never learned."""
    norms = {}
    for how, shared in {"ddp": (), "fsdp": FSDP[:1]}.items():
        run = tmp_path / how
        settings = (*BATCH, *shared, "dtype=mixed", "activation_checkpointing=off")
        command = words(place, "llama", "texts", "lorada_la", run, *settings)
        launch_all(tmp_path, [command], "mixed", *([how] if shared else []))
        history = read_result(run).history
        norms[how] = [entry["relative_norm"] for entry in history if "relative_norm" in entry]
    assert norms["ddp"][0] == norms["fsdp"][0] == 0
    assert norms["ddp"][-1] > 1e-3
    assert norms["fsdp"] == pytest.approx(norms["ddp"], rel=0.05)


SHARED = {
    "ddp": (),
    "fsdp2_sharded": (FSDP[0], "training.fsdp_config={state_dict_type: SHARDED_STATE_DICT}"),
}


@pytest.mark.slow
@pytest.mark.fp64
@pytest.mark.parametrize("how", SHARED)
def test_ctrl_c_in_one_process_stops_all_after_a_step_and_they_resume(how, place, tmp_path, works):
    two = tmp_path / "two"
    command = words(place, "llama", "texts", "lorada_la", two, *BATCH, *SHARED[how])
    commands = [
        ["INTERRUPT=1", *command, "save_steps=1"],
        ["train", "--resume", "--output", str(two)],
    ]
    codes, done = launch_all(tmp_path, commands, *(["fsdp"] if SHARED[how] else []))
    assert codes == [[130, 0]] * 2, done.stderr
    assert done.stderr.count("stopped and saved at step 2") == 1
    assert read_result(two).resumed_from == "checkpoint-2"
    other = alone(place, works, "llama", "texts", "lorada_la", tmp_path / "one")
    assert_same_run(two, other)


@pytest.mark.slow
def test_an_error_ends_all_processes(place, tmp_path, mistake):
    run = {name: tmp_path / name for name in ("whole", "nan", "broken", "odd")}
    command = {name: words(place, "llama", "texts", "lora", at, *BATCH) for name, at in run.items()}
    codes, done = launch_all(
        tmp_path, [command["whole"], ["NAN=1", *command["nan"], "save_steps=1"]]
    )
    assert codes == [[0, 2]] * 2, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "the loss became nan at step 2; " in error
    assert [path.name for path in run["nan"].glob("checkpoint-*")] == ["checkpoint-1"]
    # What one process alone meets.
    (tmp_path / "commands.json").write_text(json.dumps([["BREAK=1", *command["broken"]]]))
    done = launched([*TORCHRUN, WORKER, str(tmp_path / "commands.json")])
    assert done.returncode != 0
    assert done.stderr.count("error: something broke") == 1
    # What is found wrong before the processes have met, by the first alone or by each.
    for name, setting, said in (
        ("whole", (), "already holds a run"),
        ("odd", ("nothing=1",), "error: unknown override 'nothing'"),
    ):
        done = launched([*TORCHRUN, "-m", "lorada.cli", *command[name], *setting])
        assert done.returncode != 0
        assert said in done.stderr
    # A run of two processes does not go on in one.
    (run["whole"] / "result.json").unlink()
    line = mistake("train", "--resume", "--output", run["whole"])
    assert "checkpoint-4 was saved by 2, not 1 process(es)" in line


@pytest.mark.slow
def test_accelerate_launches_two_processes_too(place, tmp_path, works):
    accelerate = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2"]
    accelerate += ["--main_process_port", "0", "-m", "lorada.cli"]
    other = alone(place, works, "llama", "texts", "lorada_la", tmp_path / "one")
    command = words(place, "llama", "texts", "lorada_la", tmp_path / "two", *BATCH)
    done = launched([LORADA, "run", *accelerate, *command])
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("next: lorada evaluate") == 1
    assert_whole(tmp_path / "two", other)


def test_a_command_for_one_process_is_refused_where_there_are_more(mistake, monkeypatch):
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert "lorada evaluate is for one process, and 2 were started" in mistake("evaluate", "x")
