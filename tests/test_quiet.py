"""What other libraries say for themselves does not reach who runs a command, unless it matters."""

import importlib.util
import logging
import subprocess
import sys

import pytest
from folders import llama_folder

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


def test_only_the_command_line_keeps_other_libraries_from_being_heard():
    code = (
        "import logging, sys, lorada_cli, lorada.cli\n"
        "loggers = [logging.getLogger(name) for name in lorada.cli.UNHEARD]\n"
        "assert not any(logger.filters for logger in loggers)\n"
        "sys.argv = ['lorada', 'methods', '--json']\n"
        "lorada_cli.main()\n"
        "assert all(logger.filters for logger in loggers)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("torchao"), reason="torchao missing")
def test_a_mistake_is_one_line_with_torchao_installed(tmp_path):
    words = ["train", "--model", llama_folder(tmp_path), "--data", "none.jsonl", "--output", "run"]
    code = "import sys, lorada_cli\nsys.argv = ['lorada', *sys.argv[1:]]\nlorada_cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error"]
