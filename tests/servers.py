"""Servers in a thread of the test, for the tests of ``lorada serve``."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import uvicorn
from folders import TURNS, bart_folder, llama_folder, rows_file
from programs import until
from trained import train_once
from transformers import GenerationConfig

from lorada.inference.serving.api import Server
from lorada.inference.serving.server import listen

SETTINGS = ["max_steps=2", "learning_rate=0.1", "report_to=[]", "max_length=48", "max_new_tokens=9"]
RANDOM = "lmam.init_weights=false"
# Run → model, method, rows, and settings of its own.
RUNS = {
    "mine.v1": ("llama", "lorada_la", "rows", [RANDOM]),
    "talk": ("llama", "lorada_la", "turns", [RANDOM]),
    "lora": ("llama", "lora", "rows", []),
    "bottleneck": ("llama", "lmam+adapter_ffn", "rows", [RANDOM]),
    "prefix": ("llama", "prefix", "rows", []),
    "beams": ("beams-llama", "lorada_la", "rows", [RANDOM]),
    "whole": ("llama", "full", "rows", []),
    "seq2seq": ("bart", "lmam+lora", "rows", [RANDOM]),
}


def trained(place: Path, name: str) -> Path:
    """The folder of a run of ``RUNS``, which is trained at its first use."""
    if not (place / "rows.jsonl").is_file():
        llama_folder(place / "llama", max_position_embeddings=512)
        bart_folder(place / "bart")
        llama_folder(place / "beams-llama")
        GenerationConfig(num_beams=3, eos_token_id=2).save_pretrained(place / "beams-llama")
        rows_file(place / "rows.jsonl")
        rows_file(place / "turns.jsonl", TURNS)
    return train_once(place, name, RUNS, SETTINGS)


@contextmanager
def running(server: Server) -> Iterator[str]:
    """Run a server in a thread of its own in a ``with`` block; gives its address."""
    socket = listen("127.0.0.1", 0)
    runner = uvicorn.Server(uvicorn.Config(server.app(), log_level="warning", access_log=False))
    thread = threading.Thread(target=runner.run, args=[[socket]])
    thread.start()
    until(lambda: runner.started)
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        runner.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


class Process:
    """``lorada serve`` as a process, and what it says."""

    def __init__(self, *words, folder=None):
        command = [sys.executable, "-m", "lorada.cli", "serve", "--port", "0", *map(str, words)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
        )
        self.said = []
        threading.Thread(target=self._listen, daemon=True).start()
        until(lambda: self.address or self.process.poll() is not None, 90)

    def _listen(self):
        for line in self.process.stderr:
            self.said.append(line)

    @property
    def address(self):
        return next(iter(re.findall(r"listening at (http://\S+);", "".join(self.said))), None)

    def curl(self, path, body=None, *options):
        words = ["curl", "-sN", "--max-time", "60", self.address + path, *options]
        if body is not None:
            words += ["-d", json.dumps(body)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def asked(self, path, body=None, *options):
        return json.loads(self.curl(path, body, *options).communicate()[0])
