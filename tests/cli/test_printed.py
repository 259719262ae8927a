"""What is printed: letters as they are, a table that fits, and nothing of other libraries."""

import json
import logging
import subprocess
import sys
from dataclasses import replace

import pytest
from made_up_comparison import renamed
from paths import ROOT
from rich.table import Table

from lorada.cli.compare_commands import _show_report
from lorada.cli.shared import print_json, prints_to_stderr
from lorada.support.progress import plain_console

SOURCE = ROOT / "src" / "lorada"
ODD = "runs/x[/y] [bold]a[/bold] :smile: [link=x]"


def test_consoles_print_paths_as_they_are():
    console = plain_console()
    table = Table("a [b]", title=ODD)
    table.add_row(ODD)
    with console.capture() as capture:
        console.print(ODD, soft_wrap=True)
        console.print(table, soft_wrap=True)
        console.print(f"• {ODD}", highlight=False, soft_wrap=True)
    assert capture.get().count(ODD) == 4


@pytest.mark.parametrize("as_json", [True, False])
def test_beside_json_what_others_print_goes_to_the_error_stream(as_json, capsys):
    with prints_to_stderr(as_json):
        print("a line of a library")
    print_json({"steps": 2})
    out, err = capsys.readouterr()
    assert ("library" in err) == as_json
    assert not as_json or json.loads(out) == {"steps": 2}


def test_every_console_is_made_in_the_one_place_where_brackets_are_letters():
    users = [p.name for p in SOURCE.rglob("*.py") if "Console(" in p.read_text()]
    assert users == ["progress.py"]


LONG = "lora+lmam:lora.r=4|8|16:lmam.rank=1|2:map_learning_rate=1e-3 (0.2%, 1000000)"


def test_the_report_fits_80_columns_and_cuts_no_name(made_up_summary, capsys, tmp_path):
    lines = [renamed(one, f"{LONG} {number}") for number, one in enumerate(made_up_summary.lines)]
    _show_report(replace(made_up_summary, lines=tuple(lines)), [tmp_path], as_json=False)
    said = capsys.readouterr().out.splitlines()
    begin = next(i for i, line in enumerate(said) if "expected loss  parameters" in line)
    table = said[begin : next(i for i, line in enumerate(said) if line.startswith("•"))]
    assert max(map(len, table)) <= 80
    assert table[1].rstrip().endswith("  take")
    names = "".join(line[: table[0].index("score")].strip() for line in table)
    whole = "".join(table)
    for one in made_up_summary.lines:
        if one.score is not None:
            assert f"{one.score:.1f} ± " in whole
            assert f"{one.result.trainable:,}" in whole
    assert names.replace(" ", "").count(LONG.replace(" ", "")) == len(made_up_summary.scored)


def test_what_other_libraries_say_for_themselves_is_not_heard_unless_it_concerns_the_user(call):
    assert call("tasks", "--json")[0] == 0
    heard = []

    class Own(logging.Handler):
        def emit(self, record):
            heard.append(record.getMessage())

    for name in ("huggingface_hub.utils._http", "transformers.modeling_utils"):
        log, own = logging.getLogger(name), Own()
        log.addHandler(own)
        for message in ("Retrying in 1s [Retry 1/5].", "Llama LOAD REPORT", "Rate limited."):
            log.warning(message)
        log.removeHandler(own)
    hub, transformers = ["Llama LOAD REPORT"], ["Retrying in 1s [Retry 1/5]."]
    assert heard == [*hub, "Rate limited.", *transformers, "Rate limited."]


BAR = (
    "from lorada.cli import _silence_others; _silence_others()\n"
    "import time; from datasets.utils import tqdm\n"
    "for _ in tqdm([0, 1], 'short', mininterval=0): pass\n"
    "for _ in tqdm(range(3), 'long', mininterval=0): time.sleep(0.6)\n"
)


@pytest.mark.more
def test_a_bar_of_another_library_appears_only_after_a_second(monkeypatch):
    monkeypatch.delenv("TQDM_DELAY", raising=False)
    done = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, check=True)
    assert "short" not in done.stderr
    assert "long" in done.stderr
