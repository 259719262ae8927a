"""What other libraries say for themselves does not reach who runs a command, unless it matters."""

import logging
import subprocess
import sys

import pytest

from lorada.support.quiet import VARIABLE

OTHERS = {
    "torch.utils._pytree": [
        "<enum 'K'> is an Enum subclass and is now natively supported by torch.compile",
        "<class 'K'> is not registered",
    ],
    "huggingface_hub.utils._http": [
        "'Name or service not known' thrown while requesting HEAD https://huggingface.co/a/b",
        "Retrying in 1s [Retry 1/5].",
        "Rate limited. Waiting 9s before retry [Retry 1/5].",
    ],
}


def test_what_other_libraries_say_for_themselves_is_heard_where_it_concerns_the_user(call):
    assert call("tasks", "--json")[0] == 0
    heard = []

    class Own(logging.Handler):
        def emit(self, record):
            heard.append(record.getMessage())

    for name, messages in OTHERS.items():
        log, own = logging.getLogger(name), Own()
        log.addHandler(own)
        for message in messages:
            log.warning("%s", message)
        log.removeHandler(own)
    assert heard == [OTHERS["torch.utils._pytree"][-1], OTHERS["huggingface_hub.utils._http"][-1]]


def test_only_the_command_line_keeps_other_libraries_from_being_heard(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    code = (
        "import logging, sys, lorada.cli, lorada.support.quiet\n"
        "loggers = [logging.getLogger(name) for name in lorada.support.quiet.SILENCED]\n"
        "assert not any(logger.filters for logger in loggers)\n"
        "sys.argv = ['lorada', 'methods', '--json']\n"
        "lorada.cli.main()\n"
        "assert all(logger.filters for logger in loggers)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def said_by(code):
    """What a process says on its error stream."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


BAR = (
    "import time; from {} import tqdm\nfor _ in tqdm([0, 1], 'short', mininterval=0): pass\n"
    "for _ in tqdm(range(3), 'long', mininterval=0): time.sleep(0.6)\n"
)


@pytest.mark.parametrize("library", ["transformers.utils.logging", "datasets.utils"])
def test_a_bar_of_another_library_appears_only_after_a_second(library, monkeypatch):
    monkeypatch.delenv("TQDM_DELAY", raising=False)
    code = f"from lorada.support.quiet import silence; silence()\n{BAR.format(library)}"
    said = said_by(code)
    assert "short" not in said
    assert "long" in said
    assert "short" in said_by(BAR.format(library))
