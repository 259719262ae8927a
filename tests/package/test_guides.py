"""The guides of the documentation run: their Python and their commands, on a tiny local model."""

import importlib.util
import io
import json
import re
import subprocess
import sys

import pytest
from folders import bert_folder, llama_folder
from paths import HELPERS, ROOT
from programs import commands, printed
from servers import Process

from lorada import cli

CHAT = "9 + 4 =\n/base\n/reset\n/quit\n"  # is typed into each chat
# Each page with a file that its code writes; the other pages only print.
WRITES = {
    "index": None,
    "guides/train": "runs/mine/adapter/adapter_model.safetensors",
    "guides/forms": None,
    "guides/scores": "runs/scored/adapter/adapter_model.safetensors",
    "guides/go-on": "runs/both/adapter/adapter_model.safetensors",
    "guides/keep": "comparison/kept/kept.json",
    "guides/models": "models/report.html",
    "guides/stack": "my-adapter/adapter_model.safetensors",
    "guides/export": "my-model/config.json",
    "guides/elsewhere": "my-merged/config.json",
    "guides/graphs": "my-graph/model.onnx",
    "guides/tables": None,
    "guides/processes": None,
    "guides/label": "labels.csv",
    "guides/one-gpu": "my-8b/config.json",
    "guides/trl": "out/adapter/adapter_model.safetensors",
    "guides/several": "runs/taker/adapter/adapter_model.safetensors",
    "guides/share": "runs/shared/adapter/README.md",
    "guides/your-method": "my-model/config.json",
    "compare": "comparison/report.html",
    "decide": "scores.csv",
    "cluster": None,
    "explore": "explanation.html",
    "serve": "runs/adder/.served/adder/config.json",
}


def typed(block):
    """The commands of a block that end by themselves, as words."""
    for words in commands(block):
        if words[1] not in ("run", "serve"):
            # A table that is trained takes minutes: here it is only planned.
            trained = words[1] == "table" and words[2] not in ("2", "3")
            yield [*words, "--dry-run"] if trained and "--dry-run" not in words else words


@pytest.mark.more
@pytest.mark.skipif(not importlib.util.find_spec("uvicorn"), reason="needs the extra serve")
def test_the_first_hour_of_a_new_user_goes_well(tmp_path):
    out = printed(sys.executable, HELPERS / "first_hour.py", tmp_path, HF_HUB_OFFLINE="1")
    assert out.splitlines()[-1] == "the first hour went well"


def test_every_guide_with_code_is_run_here():
    pages = {path for path in (ROOT / "docs/guides").glob("*.md") if "```" in path.read_text()}
    assert pages == {ROOT / f"docs/{name}.md" for name in WRITES if name.startswith("guides/")}


# What the code of a page needs beyond the package itself.
NEEDS = {
    "guides/graphs": ("onnx", "onnxscript", "onnxruntime"), "guides/one-gpu": ("bitsandbytes",),
    "guides/trl": ("trl",), "serve": ("fastapi", "openai", "uvicorn"),
}  # fmt: skip


# Pages whose code runs in less than a second.
QUICK = ("index", "guides/forms", "guides/go-on", "guides/tables", "guides/processes")


def marks(name):
    """A page is skipped where what it needs is not installed."""
    lacking = [package for package in NEEDS.get(name, ()) if not importlib.util.find_spec(package)]
    skip = pytest.mark.skipif(bool(lacking), reason=f"needs {', '.join(lacking)}")
    if name == "guides/graphs":
        return [skip, pytest.mark.slow]
    return [skip] if name in QUICK else [skip, pytest.mark.more]


PAGES = [pytest.param(name, marks=marks(name)) for name in WRITES]


# Executes each line of its input, a block of code in JSON.
PYTHON = """
import json, sys
names = {"__name__": "__main__"}
for line in sys.stdin:
    exec(json.loads(line), names)
    print("\\0", flush=True)
"""


# A block of Python that begins with the name of a file is that file.
FILE = re.compile(r"# (\w+\.py)\n")
# Pages whose commands import a package of their own, each command in a process of its own.
ISOLATED = ("guides/your-method",)


class Blocks:
    """Runs the Python of a page in one process, block by block."""

    def __init__(self, place):
        self.place, self.process = place, None

    def run(self, block):
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PYTHON], cwd=self.place, text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=(self.place / "stderr.txt").open("w"),
            )  # fmt: skip
        print(json.dumps(block), file=self.process.stdin, flush=True)
        ended = any(line == "\0\n" for line in self.process.stdout)
        assert ended, f"{block}\n{(self.place / 'stderr.txt').read_text()[-3000:]}"

    def end(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_guide_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 128, "intermediate_size": 384, "max_position_embeddings": 512}
    for hub_id in ("HuggingFaceTB/SmolLM2-135M", "meta-llama/Llama-3.1-8B"):
        llama_folder(tmp_path / hub_id, **sizes)  # read in place of the hub's
    bert_folder(tmp_path / "sentence-transformers/all-MiniLM-L6-v2")
    page = (ROOT / f"docs/{name}.md").read_text()
    blocks, server = Blocks(tmp_path), None
    for language, block in re.findall(r"```(python|bash|sh)\n(.*?)```", page, flags=re.S):
        if language == "sh" and "lorada predict" not in block:
            continue  # needs a network or another machine
        if server is not None:
            block = block.replace("localhost:8000", f"localhost:{server.port}")
        if language == "python" and (file := FILE.match(block)):
            (tmp_path / file[1]).write_text(block)
        elif language == "python":
            blocks.run(block)
        elif block.startswith("lorada serve"):
            server = Process(*block.split()[2:], folder=tmp_path)
        elif block.startswith("curl"):
            assert printed("bash", "-ec", block).count('"adder"') == 2
        elif name in ISOLATED:
            printed("bash", "-ec", block.replace("lorada ", f"{sys.executable} -m lorada.cli "))
        else:
            for words in typed(block):
                monkeypatch.setattr(sys, "argv", words)
                monkeypatch.setattr(sys, "stdin", io.StringIO(CHAT))
                cli.main()
    blocks.end()
    if server is not None:
        server.end()
    if WRITES[name]:
        assert (tmp_path / WRITES[name]).is_file()
