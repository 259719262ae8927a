"""docs/serve.md runs: its run is trained, served by its command, and asked by its code."""

import re
import shlex
import sys

import pytest
from folders import llama_folder
from paths import ROOT
from programs import printed
from servers import Process

from lorada import cli

PAGE = (ROOT / "docs/serve.md").read_text()
BASE = "HuggingFaceTB/SmolLM2-135M"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The page's server; its first blocks make what it serves."""
    monkeypatch.chdir(tmp_path)
    llama_folder(tmp_path / BASE, max_position_embeddings=512)  # read in place of the hub's
    python, train, serve = re.findall(r"```(?:python|bash)\n(.*?)```", PAGE, flags=re.S)[:3]
    exec(python, {})
    for line in train.replace("\\\n", " ").splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        cli.main()
    words = shlex.split(serve)
    assert words[:2] == ["lorada", "serve"]
    found = Process(*words[2:], folder=tmp_path)
    yield found
    found.process.kill()
    found.process.wait()


def test_the_page_runs(server, capsys):
    curl, python = re.findall(r"```(?:python|bash)\n(.*?)```", PAGE, flags=re.S)[3:]
    for line in curl.splitlines():
        words = shlex.split(line.replace("http://127.0.0.1:8000", server.address))
        assert '"adder"' in printed(*words, "-sf")
    capsys.readouterr()
    # A base in a folder goes by the folder's name.
    here = python.replace("http://127.0.0.1:8000", server.address).replace(BASE, "SmolLM2-135M")
    exec(here, {})
    out = capsys.readouterr().out
    assert [line.split(" ")[0] for line in out.splitlines()[:2]] == ["adder", "lora"]
    assert "SmolLM2-135M" in out


def test_every_option_and_field_of_the_page_is_one():
    from lorada.cli.serve_command import serve
    from lorada.inference.serving.requests import ChatRequest, CompletionRequest

    parameters = set(serve.__annotations__)
    options = set(re.findall(r"`--([a-z-]+)`", PAGE))
    assert {option.replace("-", "_") for option in options} <= parameters
    rows = re.search(r"\| field \|.*?\n\n", PAGE, flags=re.S).group().strip().splitlines()[2:]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert "temperature" in named
    assert named <= set(ChatRequest.model_fields) | set(CompletionRequest.model_fields)
