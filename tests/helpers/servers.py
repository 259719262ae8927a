"""``lorada serve`` as a process, for tests."""

import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

from programs import until


class Process:
    """``lorada serve`` at a free port, and what it says."""

    def __init__(self, *words, folder=None):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "lorada.cli", "serve", *words, "--port", self.port]
        self.process = subprocess.Popen(
            [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=folder,
        )  # fmt: skip
        self.said = ""
        threading.Thread(target=self._listen, daemon=True).start()
        until(lambda: "Uvicorn running" in self.said or self.process.poll() is not None, 180)

    def _listen(self):
        for line in self.process.stdout:
            self.said += line

    def asked(self, path, body=None):
        """The answer to a request, as text if it is streamed, else as it stands in JSON."""
        address = f"http://127.0.0.1:{self.port}{path}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            text = response.read().decode()
        return text if body and body.get("stream") else json.loads(text)

    def refused(self, path, body):
        """The status and the error of a request with a mistake."""
        try:
            self.asked(path, body)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        raise AssertionError("it was answered")

    def end(self):
        """End it as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=60)
        finally:
            self.process.kill()
