"""A process that has imported everything once and forks a ``lorada`` command for each request.

It reads a request a line from stdin and writes a reply a line to stdout, both JSON. A command ends
by itself, is killed from outside after a while, or meets its end at the n-th *write point*: the
n-th time that it is about to make, open for writing, move or remove something below a folder.

Request: ``words`` of the command, the ``folder`` that is watched, and perhaps ``after`` (seconds to
the kill), ``slow`` (seconds that every write point takes), ``at`` (number of a write point) and
``how`` (one of HOW). Reply: ``code`` (negative: the signal that ended it), ``steps`` that were
trained, the write ``points`` it came to, and what it ``said``.
"""

import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

# What happens at a write point. A limit on the size of files is what reaches the writers of
# safetensors and torch, which are not Python: the kernel stops them in the middle of a file.
HOW = {
    "kill": None,  # killed before it
    "kill empty": 0,  # killed at the first byte written after it
    "kill half": 300,  # killed in the middle of the first file of more than 300 bytes
    "no space": None,  # no file can be opened or made from here on
    "full": 0,  # not a byte can be written from here on
    "half full": 300,  # no file can grow beyond 300 bytes from here on
}


class Watch:
    """Counts the write points of this process, and ends it at one of them."""

    def __init__(self, request, report):
        self.folder = os.path.realpath(request["folder"])
        self.at, self.how = request.get("at"), request.get("how", "kill")
        self.slow, self.report, self.count = request.get("slow", 0), report, 0

    def tell(self, line):
        os.write(self.report, (line + "\n").encode())

    def point(self, what, path):
        self.tell(f"{what} {os.path.relpath(path, self.folder)}")
        self.count += 1
        time.sleep(self.slow)
        if self.at is None or self.count < self.at:
            return
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "no space":
            if what in ("open", "os.mkdir", "os.rename"):
                raise OSError(28, "No space left on device", str(path))
            return
        if self.how.startswith("kill"):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        limit = HOW[self.how]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def audit(self, event, args):
        if event == "open":
            path, _, flags = args
            if not isinstance(path, str | bytes | os.PathLike) or not flags & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT
            ):
                return
            path, inside = os.fsdecode(path), -1
        elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            path, inside = os.fsdecode(args[0]), args[-1]
        else:
            return
        if inside != -1:  # relative to an open folder, as rmtree does it
            path = os.path.join(os.readlink(f"/proc/self/fd/{inside}"), path)
        path = os.path.realpath(path)
        if event == "os.mkdir" and os.path.isdir(path):
            return  # makedirs(exist_ok=True)
        if (path + os.sep).startswith(self.folder + os.sep):
            self.point(event, path)

    def watch(self):
        import safetensors.torch
        import torch
        from transformers import Trainer

        save, serialize, step = torch.save, safetensors.torch.serialize_file, Trainer.training_step

        def watched_save(what, path, *args, **kwargs):
            self.point("torch.save", path)
            save(what, path, *args, **kwargs)

        def watched_serialize(tensors, path, *args, **kwargs):
            self.point("safetensors", path)
            serialize(tensors, path, *args, **kwargs)

        def watched_step(*args, **kwargs):
            loss = step(*args, **kwargs)
            self.tell("step")
            return loss

        torch.save, safetensors.torch.serialize_file = watched_save, watched_serialize
        Trainer.training_step = watched_step
        sys.addaudithook(self.audit)


def run(request, report, said):
    """The child: the command, its output to ``said`` and its write points to ``report``."""
    from lorada.cli import main

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1) for fd in (1, 2))
    sys.argv = ["lorada", *request["words"]]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Watch(request, report).watch()
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0


def answer(request):
    """Fork the command, kill it if that is asked for, and say what became of it."""
    (told, report), (heard, said) = os.pipe(), os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = run(request, report, said)
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    os.close(report)
    os.close(said)
    with ThreadPoolExecutor() as readers:  # a pipe that is full would stop the child
        texts = readers.map(text_of, (told, heard))
        if "after" in request:
            time.sleep(request["after"])
            os.kill(child, signal.SIGKILL)
        events, said_text = texts
    seconds = time.monotonic() - began
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    lines = events.splitlines()
    return {
        "code": code, "steps": lines.count("step"), "seconds": seconds,
        "points": [line for line in lines if line != "step"], "said": said_text,
    }  # fmt: skip


def text_of(pipe):
    """What comes through a pipe until its other end is closed."""
    with open(pipe, errors="replace") as file:
        return file.read()


def warm_up():
    """Import what the command imports while it runs."""
    import here
    import safetensors.torch  # noqa: F401
    import torch

    import lorada.paper.figures
    import lorada.training.train  # noqa: F401
    from lorada.compare.jobs.pool import Workers

    # Jobs in this process, whose write points are watched.
    Workers.start, Workers.wait = here.start, here.wait

    torch.set_num_threads(1)
    from matplotlib.backends import backend_agg  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")  # made once a process
    # What is there now is never collected: the Trainer's own call of the collector would take
    # longer than all steps of a run.
    gc.freeze()


if __name__ == "__main__":
    warm_up()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
