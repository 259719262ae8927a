"""A process that has imported everything once and forks a ``lorada`` command for each request.

Requests come by stdin and replies go to stdout, a line of JSON each. A request has the ``words`` of
the command, the ``folder`` that is watched, and perhaps ``at``: a regex of the write in the folder,
such as ``os.rename a/b``, at which the command is killed, or the number of that write. With a
``limit`` it is killed in the middle of the first file of more bytes from there on, or, if ``full``,
finds no space for them. The reply has the ``code`` (negative: the signal that ended it), the
``steps`` that were trained, and what the command ``said``.
"""

import gc
import json
import os
import re
import resource
import signal
import sys
import traceback

import jobs_in_process
import torch
from matplotlib.backends import backend_agg  # noqa: F401
from transformers import LlamaForCausalLM, Trainer  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import lorada.paper.figures
import lorada.training.train  # noqa: F401
from lorada.cli import main
from lorada.compare.jobs.pool import Workers

STEP = "\1"  # comes through the pipe of what a command says, for each step


def watch(request, said):
    """End this process at one of its writes, and tell its steps."""
    folder, at, writes = os.path.realpath(request["folder"]), request.get("at", 0), []

    def write(event, path):
        what = f"{event} {os.path.relpath(os.path.realpath(path), folder)}"
        if " .." in what:
            return
        writes.append(what)
        if not (len(writes) == at if isinstance(at, int) else re.search(at, what)):
            return
        if "limit" not in request:
            os.kill(os.getpid(), signal.SIGKILL)
        if not request.get("full"):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        # It is the kernel that stops the writers of safetensors and torch, which are not Python.
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], resource.RLIM_INFINITY))

    def audit(event, args):
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                write(event, os.fsdecode(args[0]))
        elif event in ("os.mkdir", "os.rename", "os.remove"):
            path, inside = os.fsdecode(args[0]), args[-1]
            if inside != -1:  # relative to an open folder, as rmtree does it
                path = os.path.join(os.readlink(f"/proc/self/fd/{inside}"), path)
            write(event, path)

    def step(*given, plain=Trainer.training_step, **more):
        loss = plain(*given, **more)
        os.write(said, STEP.encode())
        return loss

    Trainer.training_step = step
    sys.addaudithook(audit)


def run(request, said):
    """The child: the command, whose output goes to ``said``."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for fd in (1, 2):
        os.dup2(said, fd)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1) for fd in (1, 2))
    sys.argv = ["lorada", *request["words"]]
    watch(request, said)
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


def answer(request):
    """Fork the command, and say what became of it."""
    heard, said = os.pipe()
    child = os.fork()
    if child == 0:
        os._exit(run(request, said))
    os.close(said)
    with open(heard, errors="replace") as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"code": code, "steps": text.count(STEP), "said": text.replace(STEP, "")}


if __name__ == "__main__":
    # Jobs in the process that is watched.
    Workers.start, Workers.wait = jobs_in_process.start, jobs_in_process.wait
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    get_checkpoint_conversion_mapping("llama")  # made once a process
    # What is there now is never collected: the Trainer's own call of the collector would take
    # longer than all steps of a run.
    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
