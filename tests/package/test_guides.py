"""The guides of the documentation run: their Python and their commands, on a tiny local model."""

import importlib.util
import io
import re
import shlex
import sys

import pytest
from folders import llama_folder
from paths import ROOT

from lorada import cli

CHAT = "9 + 4 =\n/base\n/effect\n/reset\n/quit\n"  # is typed into each chat
# Each page with a file that its code writes; the other pages only print.
WRITES = {
    "index": None,
    "guides/train": "runs/mine/adapter/adapter_model.safetensors",
    "guides/predict": "labels.csv",
    "guides/stack": "my-adapter/adapter_model.safetensors",
    "guides/export": "my-model/config.json",
    "guides/graphs": "my-graph/model.onnx",
    "guides/tables": None,
    "compare": "comparison/report.html",
    "cluster": None,
    "explore": "explanation.html",
    "forms": "my-map/adapter_model.safetensors",
}


def commands(block):
    """The ``lorada`` commands of a block, as words; a backslash continues a line."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        servers = ("run", "serve")
        if words[:1] != ["lorada"] or words[1] in servers or "--serve" in words:
            continue
        # A table that is trained takes minutes: here it is only planned.
        trained = words[1] == "table" and words[2] not in ("2", "3")
        yield [*words, "--dry-run"] if trained and "--dry-run" not in words else words


def test_every_guide_with_code_is_run_here():
    pages = {path for path in (ROOT / "docs/guides").glob("*.md") if "```" in path.read_text()}
    assert pages == {ROOT / f"docs/{name}.md" for name in WRITES if name.startswith("guides/")}


GRAPHS = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))),
    reason="a package is missing: pip install 'lorada[onnx]'",
)
PAGES = [
    pytest.param(n, marks=[GRAPHS, pytest.mark.slow] if n == "guides/graphs" else ())
    for n in WRITES
]


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_guide_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 128, "intermediate_size": 384, "max_position_embeddings": 512}
    llama_folder(tmp_path / "HuggingFaceTB/SmolLM2-135M", **sizes)  # read in place of the hub's
    page = (ROOT / f"docs/{name}.md").read_text()
    names = {}
    for language, block in re.findall(r"```(python|bash)\n(.*?)```", page, flags=re.S):
        if language == "python":
            exec(block, names)
        else:
            for words in commands(block):
                monkeypatch.setattr(sys, "argv", words)
                monkeypatch.setattr(sys, "stdin", io.StringIO(CHAT))
                cli.main()
    if WRITES[name]:
        assert (tmp_path / WRITES[name]).is_file()
