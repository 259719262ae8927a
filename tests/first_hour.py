"""The first hour of a new user, typed as the README and the guides have it, in a fresh folder.

    python tests/first_hour.py FOLDER

Rows of one's own are compared, a run is looked into, served, asked, exported, and loaded by another
program. Installing is ``make dist``. What differs from the pages: the model is a tiny one
that is made here, and a comparison takes two methods, one seed and a few steps.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from folders import llama_folder, rows_file
from paths import ROOT

README, EXPORT, SERVE = (
    ROOT / name for name in ("README.md", "docs/guides/export.md", "docs/serve.md")
)
NAMES = {"smollm2-135m": "model", "runs/mine": "RUN"}  # of the pages → of this hour
SMALLER = [
    "--methods", "lora,lmam", "--budget", "9%", "--seeds", "1", "--trials", "1", "--allow-overlap",
    "max_steps=3", "max_length=32",
]  # fmt: skip


def main(place: Path) -> None:
    """Type it all; ends with an error at the first thing that does not work."""
    llama_folder(place / "model", hidden_size=256, intermediate_size=768)
    for name in ("rows.jsonl", "held_out.jsonl"):
        rows_file(place / name)
    os.chdir(place)
    typed(README, "lorada train", more=["max_length=32", "--dry-run"])
    typed(README, "lorada compare", more=SMALLER)
    report = json.loads(Path("comparison/report.json").read_text(encoding="utf-8"))
    assert report["verdict"], "the comparison does not say which method to take"
    # A tiny model has learned nothing in a few steps, so that no method is to be taken.
    run = min(Path("comparison/runs").rglob("result.json")).parent
    typed(README, "lorada explore", run, ["--output", "page.html"])
    typed(README, "lorada evaluate", run)
    typed(README, "lorada predict", run)
    with served(run) as address:
        name = Path(run).name
        body = json.dumps({"model": name, "prompt": "2 + 2 =", "max_tokens": 4}).encode()
        with urllib.request.urlopen(f"{address}/v1/completions", body, timeout=60) as answer:
            assert "text" in json.load(answer)["choices"][0]
    typed(README, "lorada export", run)
    subprocess.run([sys.executable, "-c", python_of(EXPORT, "pipeline(")], check=True)
    print("the first hour went well")


def typed(
    page: Path, start: str, run: Path | str | None = None, more: list[str] | None = None
) -> None:
    """Run the first command of a page that begins so, with ``more`` words behind it."""
    names = {**NAMES, "runs/mine": str(run or "runs/mine")}
    words = [names.get(word, word) for word in command_of(page, start)]
    lorada(*words[1:], *(more or []))


def command_of(page: Path, start: str) -> list[str]:
    """The words of the first command of a page that begins so."""
    for block in re.findall(r"^```bash\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(f"{start} "):
                return shlex.split(line, comments=True)
    raise AssertionError(f"{page} has no command {start}")


def python_of(page: Path, what: str) -> str:
    """The Python block of a page that has these words."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    return next(block for block in blocks if what in block)


def lorada(*words: str) -> None:
    """A command of lorada in a process of its own."""
    print("$ lorada", shlex.join(map(str, words)), flush=True)
    subprocess.run([sys.executable, "-m", "lorada.cli", *map(str, words)], check=True)


@contextlib.contextmanager
def served(run: Path | str) -> Iterator[str]:
    """A server of a run, as the README starts it, until Ctrl-C; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [{"runs/mine": str(run)}.get(word, word) for word in command_of(README, "lorada serve")]
    command = [sys.executable, "-m", "lorada.cli", *words[1:], "--port", str(port)]
    with subprocess.Popen(command) as server:
        try:
            address, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
            while not healthy(address):
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.2)
            yield address
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=60)


def healthy(address: str) -> bool:
    """Whether a server answers."""
    with contextlib.suppress(OSError):  # not yet, or too busy
        return urllib.request.urlopen(f"{address}/health", timeout=5).status == 200
    return False


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
