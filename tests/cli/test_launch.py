"""``lorada run``: other programs load our adapters, in processes that never import lorada."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import assert_close
from folders import llama_folder
from huggingface_hub import ModelCard
from lm_eval_task import ROWS, perplexity_by_hand, task_file
from paths import HELPERS
from peft import PeftModel, get_peft_model
from stacks import config_of, logits, randomise, trained
from transformers import AutoModelForCausalLM

from lorada import cli

PYTHON, BIN = sys.executable, Path(sys.executable).parent
IDS = torch.arange(5, 25)[None]

# A program that knows PEFT and nothing of lorada. transformers imports peft from the middle of its
# own Trainer, where lorada must not ask for the half of it that is still missing.
LOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, Trainer
from peft import PeftModel

sys.path.insert(0, sys.argv[3])
from in_double import in_double

with torch.no_grad(), in_double():
    base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
    model = PeftModel.from_pretrained(base, sys.argv[2]).eval().double()
    print(json.dumps(model(torch.arange(5, 25)[None]).logits.tolist()))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny LLaMA, a stack with map, LoRA and bottleneck saved for it, and a program."""
    place = tmp_path_factory.mktemp("launch")
    # Wide enough that every change of attention reaches the logits.
    llama_folder(place / "llama", attention_dropout=0.0, initializer_range=0.2)
    base = AutoModelForCausalLM.from_pretrained(place / "llama")
    model = get_peft_model(base, config_of("lora", "llama", task_type="CAUSAL_LM"))
    randomise(model)
    model.save_pretrained(place / "stack")
    (place / "load.py").write_text(LOAD)
    return place


def stacked(place):
    base = AutoModelForCausalLM.from_pretrained(place / "llama")
    return PeftModel.from_pretrained(base, place / "stack").eval().double()


def through_lorada(*command, **more):
    """The console script in a process of its own."""
    words = [BIN / "lorada", "run", *command]
    own = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, **own})


@pytest.fixture
def run(monkeypatch):
    """``lorada run`` in a fork of this process: exit code, or minus the signal that ended it."""

    def run(*command, **more):
        monkeypatch.setattr(sys, "argv", ["lorada", "run", *map(str, command)])
        run.child = os.fork()
        if run.child == 0:
            code = 70
            try:
                os.environ.update(more)
                cli.main()
            except SystemExit as stop:
                code = stop.code
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(run.child, 0)[1])

    return run


# What an adapter says of itself to a process that does not know it.


@pytest.mark.parametrize("stack", ["lmam", "bottleneck", "lora"])
def test_every_saved_adapter_says_what_to_import(stack, tmp_path):
    model = trained(stack, "llama")
    model.add_adapter("second", config_of(stack, "llama"))
    for _ in range(2):
        model.save_pretrained(tmp_path)
    for folder in (tmp_path, tmp_path / "second"):
        card = ModelCard.load(folder / "README.md")
        assert card.data.library_name == "peft"
        assert card.text.count("\nimport lorada\n") == 1
        assert f"KeyError: '{model.peft_config['default'].peft_type.value}'" in card.text
        saved = json.loads((folder / "adapter_config.json").read_text())
        usage, (first, library) = saved["usage"], next(iter(saved.items()))
        assert (first, library) == ("library", "lorada: import it before loading")
        assert "`import lorada`" in usage
        assert "`lorada run`" in usage


# In a process of its own.


@pytest.mark.more
@pytest.mark.fp64
def test_a_program_that_imports_only_peft_loads_a_stack(place):
    done = through_lorada("python", place / "load.py", place / "llama", place / "stack", HELPERS)
    assert done.returncode == 0, done.stderr
    expected = logits(stacked(place), {"input_ids": IDS})
    assert_close(torch.tensor(json.loads(done.stdout)), expected)
    base = AutoModelForCausalLM.from_pretrained(place / "llama")
    assert not torch.allclose(expected, logits(base, {"input_ids": IDS}), atol=1e-3)


# How lorada gets there, with stand-ins for peft and lorada that say what happens to them.


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "__init__.py").write_text(
        "print('peft begins')\nimport peft.tuners\nprint('peft ends')\n"
    )
    (tmp_path / "peft" / "tuners.py").write_text("")
    (tmp_path / "lorada.py").write_text("print('lorada')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


PEFT = ["peft begins", "peft ends"]
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import peft, peft'])"


def test_lorada_is_imported_once_in_each_process_before_all_else(stand_ins, run, capfd):
    assert run(PYTHON, "-c", CHILD) == 0
    out, err = capfd.readouterr()
    assert out.splitlines() == ["lorada", "lorada", *PEFT]
    assert err == ""


def test_where_lorada_cannot_be_imported_the_program_runs_on_after_one_line(stand_ins, run, capfd):
    (stand_ins / "lorada.py").write_text("raise ImportError('not\\nhere')")
    assert run(PYTHON, "-c", "import peft; print('on')") == 0
    out, err = capfd.readouterr()
    assert out.splitlines() == [*PEFT, "on"]
    assert err == f"lorada run: {PYTHON} cannot import lorada: not here\n"


# The command is the command.


def test_the_command_takes_the_place_of_lorada_run_with_exit_code_and_signal(run, capfd):
    assert run("sh", "-c", "echo $$; exit 7") == 7
    assert int(capfd.readouterr().out) == run.child
    assert run("sh", "-c", "kill -TERM $$") == -15
    # As a shell's own child would, it dies of a closed pipe and not of an error about it.
    assert run("sh", "-c", "kill -PIPE $$") == -13


def test_options_behind_the_command_are_the_commands(run, capfd):
    show = [PYTHON, "-c", "import sys; print(sys.argv[1:])"]
    assert run(*show, "--help", "--json", "-x", "--", "--unknown=1", "a b") == 0
    words = ["--help", "--json", "-x", "--", "--unknown=1", "a b"]
    assert capfd.readouterr().out.strip() == str(words)
    assert run(PYTHON, "--help") == 0
    assert "-m mod" in capfd.readouterr().out


BAD_COMMANDS = {
    "no-such-program --help": "no command 'no-such-program' on PATH",
    "--no-such-option": "no command '--no-such-option' on PATH",
    "": "Missing argument 'CMD'",
    "./binary": "Exec format error",  # not for this machine
}


@pytest.mark.parametrize("command", BAD_COMMANDS)
def test_what_cannot_be_run_is_one_line_and_exit_code_2(command, place, run, capfd, monkeypatch):
    monkeypatch.chdir(place)
    Path("binary").write_bytes(b"\0")
    Path("binary").chmod(0o755)
    assert run(*command.split()) == 2
    out, err = capfd.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert BAD_COMMANDS[command] in line
    assert out == ""


# Tools that load adapters by themselves.


@pytest.mark.slow
def test_lm_eval_scores_a_stack_as_our_own_code_does(place, tmp_path):
    pytest.importorskip("lm_eval")
    base = AutoModelForCausalLM.from_pretrained(place / "llama")
    expected = perplexity_by_hand(stacked(place), ROWS)
    assert perplexity_by_hand(base, ROWS) != pytest.approx(expected, rel=1e-2)
    task_file(tmp_path)
    done = through_lorada(
        "lm_eval", "--model", "hf", "--model_args",
        f"pretrained={place / 'llama'},peft={place / 'stack'},dtype=float32", "--tasks", "makes",
        "--include_path", tmp_path, "--device", "cpu", "--batch_size", "1", "--output_path",
        tmp_path / "out", HF_DATASETS_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("out/**/results_*.json")
    found = json.loads(result.read_text())["results"]["makes"]["perplexity,none"]
    assert found == pytest.approx(expected, rel=1e-4)
