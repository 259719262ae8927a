"""Several ``lorada`` commands after one another, in as many processes as ``torchrun`` starts.

    commands_worker.py COMMANDS [fsdp] [mixed]

COMMANDS is a JSON file with a list of lists of words. The exit codes of process N go to
``COMMANDS.codesN``. With ``fsdp`` accelerate takes the processes for accelerators, the only ones
between which it shares models out; torch does it between CPUs too. All is in fp64, as processes add
up the gradients of a batch in another order than one does; with ``mixed`` each command has the
dtypes that it asks for. A word before a command makes
something happen in the second step of process N: ``NAN=N`` makes its loss one, ``INTERRUPT=N``
sends it a Ctrl-C, ``BREAK=N`` raises an error.
"""

import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import DistributedType, PartialState
from in_double import in_double
from transformers import Trainer

import lorada.cli
import lorada.training.train as training

RANK = os.environ["RANK"]
OPTIONS = sys.argv[2:]


def share_models() -> None:
    """Let accelerate take these processes for accelerators."""
    made = training.training_arguments

    def arguments(*args, **kwargs):
        settings = made(*args, **kwargs)
        assert settings.world_size == 2
        PartialState().distributed_type = DistributedType.MULTI_GPU
        return settings

    training.training_arguments = arguments


def hurt(word: str) -> None:
    """Make something happen to one process in its second step."""
    what, _, process = word.partition("=")
    step = Trainer.training_step
    steps = []

    def hurt_step(trainer, *args, **kwargs):
        steps.append(0)
        if len(steps) == 2 and process == RANK:
            if what == "INTERRUPT":
                os.kill(os.getpid(), signal.SIGINT)
            elif what == "BREAK":
                raise ValueError("something broke")
            else:
                for parameter in trainer.model.parameters():
                    parameter.data.fill_(float("nan"))
        return step(trainer, *args, **kwargs)

    Trainer.training_step = hurt_step


def run(words: list[str]) -> int:
    """One command, as the console script runs it."""
    step = Trainer.training_step
    if "=" in words[0]:
        hurt(words.pop(0))
    sys.argv = ["lorada", *words]
    try:
        with nullcontext() if "mixed" in OPTIONS else in_double():
            lorada.cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        Trainer.training_step = step
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "fsdp" in OPTIONS:
        share_models()
    file = sys.argv[1]
    lorada.cli.leave_processes = lambda: None  # the next command goes on with the same processes
    codes = [run(words) for words in json.loads(Path(file).read_text())]
    Path(f"{file}.codes{RANK}").write_text(json.dumps(codes))
