"""The command line: one line and exit code 2 for a user's mistake, JSON for programs."""

import json
import re
import shlex
import shutil
from importlib.util import find_spec

import pytest
from folders import ROWS, rows_file
from safetensors.torch import save_file

from lorada import METHODS, __version__, cli
from lorada.cli import list_commands
from lorada.cli.shared import app
from lorada.runs.result import read_predictions, read_result

TINY = [
    "training.per_device_train_batch_size=4", "training.report_to=[]", "max_steps=2",
    "max_length=32", "logging_steps=1",
]  # fmt: skip
SETTINGS = TINY
RUNS = {"finished": ("llama", "lorada_la", "rows", [])}


@pytest.fixture
def finished(folder):
    """A finished run."""
    return folder("finished")


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def train_words(place, run, *more, method="lorada_la", model="llama"):
    return [
        "train", "--method", method, "--model", place / model, "--data", place / "rows.jsonl",
        "--output", run, *TINY, *more,
    ]  # fmt: skip


@pytest.mark.more
def test_a_run_says_its_losses_and_is_scored_on_the_held_out_rows_of_its_training(
    works, place, tmp_path
):
    held_out = rows_file(tmp_path / "held out.jsonl", ROWS[:5])
    more = (f"eval_data={held_out}", "max_new_tokens=4")
    out, _ = works(*train_words(place, tmp_path / "run", *more))
    assert re.search(r"loss (\d+\.\d{3}) at first, (\d+\.\d{3}) at last", out), out
    assert f"next: lorada evaluate {tmp_path / 'run'}" in out.replace("\n", "")
    out, _ = works("evaluate", tmp_path / "run")
    metrics = read_result(tmp_path / "run").metrics[str(held_out)]
    assert re.search(rf"exact_match +│ {metrics.scores['exact_match']:.3f}", out)
    assert f"{metrics.scores['loss']:.3f}" in out
    assert f"next: lorada generate {tmp_path / 'run'}" in out.replace("\n", "")
    assert len(read_predictions(tmp_path / "run")) == metrics.n == 5


@pytest.mark.more
def test_json_output_is_nothing_but_json_also_where_colours_are_forced(
    works, json_of, place, tmp_path, monkeypatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    out, _ = works(*train_words(place, tmp_path / "run", "--json"))
    assert json.loads(out)["steps"] == 2
    assert json_of("evaluate", tmp_path / "run", "--data", place / "rows.jsonl")["n"] == 36
    assert json_of("generate", tmp_path / "run", "--prompt", "1 + 1 =")[0]["prompt"] == "1 + 1 ="
    for command in ("methods", "tasks"):
        assert json_of(command)


@pytest.mark.parametrize(
    "place", [(cli, "app"), (cli, "leave_processes"), (list_commands, "print_json")],
    ids=["before a command", "after it", "in it"],
)  # fmt: skip
def test_ctrl_c_ends_with_the_code_of_an_interrupt(call, monkeypatch, place):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(*place, interrupted)
    assert call("tasks", "--json")[0] == 130


def test_params_counts_without_weights_by_the_closed_form(json_of, place, tmp_path):
    shutil.copy(place / "llama" / "config.json", tmp_path)
    counts = json_of("params", "--method", "lorada_la", "--model", tmp_path)
    d, f, layers, heads = 32, 48, 2, 4
    lmam = 2 * heads * 64 * 2  # as many tokens as the model takes, which are fewer than 128
    lora = (d + d) + (f + d)
    bottleneck = 2 * d * 18 + 18 + d
    assert counts["trainable"] == layers * (lmam + lora + bottleneck)
    assert counts["percent"] == pytest.approx(100 * counts["trainable"] / counts["total"])
    whole = counts["total"] + counts["trainable"]
    assert counts["percent_of_all"] == pytest.approx(100 * counts["trainable"] / whole)


def test_methods_lists_all_of_them_and_shows_one_in_full(works, json_of):
    rows = json_of("methods")
    assert list(rows) == list(METHODS)
    assert rows["quanta"]["paper"] == "https://arxiv.org/abs/2406.00132"
    out, _ = works("methods")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[: len(METHODS)]] == list(METHODS)
    assert "Each is for any decoder, encoder or encoder-decoder; any without" in out
    for row in rows.values():
        assert row["models"] == ["any"] or {"llama", "roberta", "bart"} <= {*row["models"]}
    out, _ = works("methods", "lora+lmam")
    for part in (METHODS["lora"].formula, "length: 128", "lora_alpha: 64"):
        assert part in out.replace("\n", "")
    assert list(json_of("methods", "lora")) == ["lora"]


def test_methods_lists_pefts_tuners_and_shows_one_in_full(works, json_of):
    out, _ = works("methods", "--peft")
    names = out.replace("\n", " ").split("next:")[0].replace(" ", "").split(",")
    assert {"ia3", "vera", "oft"} < set(names)
    assert not set(names) & METHODS.keys()
    assert list(json_of("methods", "--peft")) == names
    out, _ = works("methods", "ia3+lora")
    assert "peft.IA3Config" in out
    assert "feedforward_modules: [down_proj]" in out


def test_help_has_every_command_in_one_of_three_groups(works):
    out, _ = works("--help")
    shown = re.findall(r"^(?:│ (\w+)  |╭─ ([\w ]+) ─)", out.partition("Options ─")[2], re.MULTILINE)
    assert [group for _, group in shown if group] == ["Train and use", "Compare", "The paper"]
    commands = [command for command, _ in shown if command]
    assert sorted(commands) == sorted(one.callback.__name__ for one in app.registered_commands)
    assert commands[0] == "train"


def test_the_version_is_printed_alone(call):
    assert call("--version") == (0, f"lorada {__version__}\n", "")


# "..." stands for anything.
BAD_TRAINING = {
    "lmam.rank=99999999999": "out of memory",
    "training.learning_rate=fast": "training.learning_rate='fast'",
    "activation_checkpointing=bogus": (
        "error: activation_checkpointing='bogus': input should be 'off', 'full' or 'auto'"
    ),
    "from_adapter=missing": "no adapter folder at missing",
    "training.report_to=[comet_ml]": "comet-ml",
    "data=builtin:../../../../etc/passwd": "no data file at",
    "data=broken.jsonl": "broken.jsonl is not JSON: Expecting...line",
}


@pytest.mark.parametrize("setting", BAD_TRAINING)
def test_a_mistake_in_training_is_one_line_and_writes_nothing(
    mistake, place, tmp_path, monkeypatch, setting
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt"\n')
    line = mistake(*train_words(place, "runs/new/one", setting))
    assert all(part in line for part in BAD_TRAINING[setting].split("..."))
    assert [path.name for path in tmp_path.iterdir()] == ["broken.jsonl"]


UNMADE = {
    "learning_rate=-1": "Invalid learning rate: -1.0",
    "optim=adamv": "adamv is not a valid OptimizerNames",
    "training.report_to=nobody": "nobody is not supported",
    "attn_implementation=flash_attention_2": "FlashAttention2...installed",
    "early_stopping=3": "early_stopping=3 needs held-out rows",
}


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
@pytest.mark.parametrize("setting", UNMADE)
def test_a_dry_run_refuses_what_the_run_refuses_in_the_same_words(
    mistake, place, tmp_path, setting
):
    words = train_words(place, tmp_path / "run", setting, method="lora")
    line = mistake(*words, "--dry-run")
    assert all(part in line for part in UNMADE[setting].split("..."))
    assert mistake(*words) == line


def test_a_dry_run_refuses_parts_that_no_memory_here_can_hold(mistake, place, tmp_path):
    words = train_words(place, tmp_path / "run", "lora.r=1000000000", method="lora")
    assert "640,000,000,000 parameters, which take 2,384 GiB" in mistake(*words, "--dry-run")


def emptied(adapter):
    shutil.rmtree(adapter)
    adapter.mkdir()


WEIGHTS = "adapter_model.safetensors"
BAD_ADAPTERS = {
    "empty": (emptied, "has no adapter_config.json"),
    "pickle": (
        lambda adapter: (adapter / WEIGHTS).rename(adapter / "adapter_model.bin"),
        "is a pickle, which lorada does not load",
    ),
    "no tensors": (lambda adapter: save_file({}, adapter / WEIGHTS), "holds no tensors"),
    "no type": (
        lambda adapter: (adapter / "adapter_config.json").write_text("{}"),
        "has peft_type=None",
    ),
}


@pytest.mark.first  # a pickle, among others
@pytest.mark.parametrize("case", BAD_ADAPTERS)
def test_a_broken_adapter_is_one_line(mistake, place, run, tmp_path, case):
    spoil, part = BAD_ADAPTERS[case]
    spoil(run / "adapter")
    assert part in mistake("evaluate", run, "--data", place / "rows.jsonl")
    start = train_words(place, tmp_path / "new", "--from", run / "adapter", method="lmam")
    assert part in mistake(*start)


@pytest.mark.parametrize("words", [[], ["train"]])
def test_a_command_without_any_word_shows_its_help_and_no_error(call, words):
    code, out, err = call(*words)
    assert code == 2
    assert "Usage" in out
    assert err == ""


BAD_COMMANDS = {
    "generate RUN --prompt ''": "the prompt is empty",
    "generate RUN --prompt a --max-new-tokens 0": "max-new-tokens",
    "generate RUN --prompt \udc80": "is not UTF-8 text",
    "generate RUN --prompt a --max-new-tokens 100000": (
        "max_new_tokens=100000 leaves no room for a prompt"
    ),
    "params --method lora --model MODEL max_steps=3": "max_steps changes no parameter count",
    "table 5 --workers 2 --cluster auto": "--workers and --cluster exclude each other",
}


@pytest.mark.parametrize("command", BAD_COMMANDS)
def test_a_mistake_in_other_commands_is_one_line(mistake, place, finished, command):
    names = {"RUN": finished, "MODEL": place / "llama"}
    words = [names.get(word, word) for word in shlex.split(command)]
    assert BAD_COMMANDS[command] in mistake(*words)


WRONG = {"labels": [1], "form": "nope", "metrics": {"a": 1}, "history": [{"loss": 1.0, "step": []}]}


@pytest.mark.parametrize("key", ["whole", *WRONG])
def test_a_damaged_result_is_one_line_of_any_command(mistake, run, tmp_path, key):
    result = json.loads((run / "result.json").read_text())
    spoilt = json.dumps({**result, key: WRONG[key]}) if key in WRONG else "[" * 100_000
    (run / "result.json").write_text(spoilt)
    for words in (["plot", "1", run, "--output", tmp_path], ["generate", run, "--prompt", "a"]):
        line = mistake(*words)
        assert "result.json" in line
        assert key == "whole" or key in line
