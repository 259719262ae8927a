"""docs/serve.md runs as it is typed: each block in a process of its own, with a hub in a folder."""

import os
import re
import shlex
import socket
import sys
from pathlib import Path

import pytest
from folders import llama_folder
from paths import ROOT
from programs import printed
from servers import Process

PAGE = (ROOT / "docs/serve.md").read_text()
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", PAGE, flags=re.S)
BASE = "HuggingFaceTB/SmolLM2-135M"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the hub in which the page's model is a tiny one."""
    at = tmp_path / "hub" / f"models--{BASE.replace('/', '--')}"
    llama_folder(at / "snapshots" / "1", max_position_embeddings=512)
    (at / "refs").mkdir()
    (at / "refs" / "main").write_text("1")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for name, value in {"HF_HUB_CACHE": at.parent, "HF_HUB_OFFLINE": 1, "PATH": path}.items():
        monkeypatch.setenv(name, str(value))


def test_the_page_runs_as_it_is_typed(hub, tmp_path):
    """Only the ports are others, which may be taken where this runs."""
    ports = {"8000": str(free_port()), "8001": str(free_port())}
    servers, out = [], []
    try:
        for language, block in BLOCKS:
            typed = re.sub(r"\b800[01]\b", lambda found: ports[found[0]], block)
            if typed.startswith("lorada serve "):
                words = shlex.split(typed)[2:]
                ask = [] if "--port" in words else ["--port", ports["8000"]]
                servers.append(Process(*ask, *words, folder=tmp_path))
                assert servers[-1].address, "".join(servers[-1].said)
            else:
                shell = ["bash", "-ec"] if language == "bash" else [sys.executable, "-c"]
                out.append(printed(*shell, typed, folder=tmp_path))
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait()
    curl, python, classify = out[2], out[3], out[-1]
    assert curl.count('"adder"') == 2
    names = [line.split(" ")[0] for line in python.splitlines()[:3]]
    assert names == ["adder", "lora", BASE]
    assert re.search(r'"answer": ?[01], ?"candidate": ?" (Paris|Vienna)"', classify)


def test_every_option_and_field_of_the_page_is_one():
    from lorada.cli.use_commands import serve
    from lorada.inference.serving.requests import ChatRequest, CompletionRequest

    parameters = set(serve.__annotations__)
    options = set(re.findall(r"`--([a-z-]+)`", PAGE))
    assert {option.replace("-", "_") for option in options} <= parameters
    rows = re.search(r"\| field \|.*?\n\n", PAGE, flags=re.S).group().strip().splitlines()[2:]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert {"temperature", "seed"} <= named
    assert named <= set(ChatRequest.model_fields) | set(CompletionRequest.model_fields)
