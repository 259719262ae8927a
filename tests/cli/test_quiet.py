"""What other libraries say for themselves does not reach who runs a command."""

import logging
import subprocess
import sys


def test_what_other_libraries_say_for_themselves_is_not_heard_unless_it_concerns_the_user(call):
    assert call("tasks", "--json")[0] == 0
    heard = []

    class Own(logging.Handler):
        def emit(self, record):
            heard.append(record.getMessage())

    for name in ("huggingface_hub.utils._http", "transformers.modeling_utils"):
        log, own = logging.getLogger(name), Own()
        log.addHandler(own)
        for message in ("Retrying in 1s [Retry 1/5].", "Llama LOAD REPORT", "weights are broken"):
            log.warning(message)
        log.error("no such file")
        log.removeHandler(own)
    assert heard[0] == "no such file"
    assert heard[1:] == ["Retrying in 1s [Retry 1/5].", "weights are broken", "no such file"]


BAR = (
    "from lorada.cli import _silence_others; _silence_others()\n"
    "import time; from datasets.utils import tqdm\n"
    "for _ in tqdm([0, 1], 'short', mininterval=0): pass\n"
    "for _ in tqdm(range(3), 'long', mininterval=0): time.sleep(0.6)\n"
)


def test_a_bar_of_another_library_appears_only_after_a_second(monkeypatch):
    monkeypatch.delenv("TQDM_DELAY", raising=False)
    done = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, check=True)
    assert "short" not in done.stderr
    assert "long" in done.stderr
