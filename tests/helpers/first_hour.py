"""The first hour of a new user, typed as the README and the guides have it, in a fresh folder.

    python tests/helpers/first_hour.py FOLDER

Rows of one's own are compared, a run is looked into, served, asked, exported, and loaded by another
program. Installing is ``make dist``. What differs from the pages: the model is a tiny one
that is made here, and a comparison takes two methods, one seed and a few steps.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from folders import llama_folder, rows_file
from paths import ROOT
from programs import commands
from servers import Process

README, EXPORT = (ROOT / name for name in ("README.md", "docs/guides/export.md"))
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
    serve(run)
    typed(README, "lorada export", run)
    blocks = re.findall(r"^```python\n(.*?)^```$", EXPORT.read_text("utf-8"), re.M | re.S)
    code = next(block for block in blocks if "pipeline(" in block)
    subprocess.run([sys.executable, "-c", code], check=True)
    print("the first hour went well")


def typed(
    page: Path, start: str, run: Path | str | None = None, more: list[str] | None = None
) -> None:
    """Run the first command of a page that begins so, with ``more`` words behind it."""
    names = {"smollm2-135m": "model", "runs/mine": str(run or "runs/mine")}
    words = [names.get(word, word) for word in next(commands(page.read_text("utf-8"), start))]
    lorada(*words[1:], *(more or []))


def lorada(*words: str) -> None:
    """A command of lorada in a process of its own."""
    print("$ lorada", shlex.join(map(str, words)), flush=True)
    subprocess.run([sys.executable, "-m", "lorada.cli", *map(str, words)], check=True)


def serve(run: Path) -> None:
    """Serve a run as the README does, ask it, and end the server with Ctrl-C."""
    (command,) = commands(README.read_text("utf-8"), "lorada serve")
    server = Process(*(str(run) if word == "runs/mine" else word for word in command[2:]))
    try:
        asked = {"model": run.name, "prompt": "2 + 2 =", "max_tokens": 4}
        assert "text" in server.asked("/v1/completions", asked)["choices"][0]
    finally:
        server.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
