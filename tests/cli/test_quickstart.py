"""The quickstart: bundled rows, three methods, a verdict, and a sentence that the winner labels."""

import csv
from collections import Counter

import pytest
from folders import bert_folder

from lorada.cli import compare_commands
from lorada.cli.compare_commands import compare
from lorada.support import models
from lorada.support.row_sources import resolve
from lorada.training.models import loading


@pytest.fixture
def shortened(tmp_path, monkeypatch, jobs_here):
    """A tiny model under the packaged one's name, rows that it can learn, one seed and one rate."""
    folder = bert_folder(tmp_path / "bert")
    monkeypatch.setattr(loading, "_packaged_folder", lambda _: folder)
    monkeypatch.setattr(models, "package_folder", lambda _: folder)
    monkeypatch.setattr(compare_commands, "QUICKSTART_SETTINGS", ["max_steps=30", "max_length=16"])
    with (tmp_path / "rows.csv").open("w") as file:
        file.write("text,label\n")
        for n in range(300):
            file.write(f"{n} {'ab'[n % 2] * 8},{('valid', 'invalid')[n % 2]}\n")
    few = {
        "data": str(tmp_path / "rows.csv"), "rates": [1e-2], "seeds": [1], "budget": None,
    }  # fmt: skip

    def short(*words, **options):
        return compare(*words, **{**options, **(few if "model" in options else {})})

    monkeypatch.setattr(compare_commands, "compare", short)


@pytest.mark.more
def test_it_ends_with_a_verdict_and_a_label(shortened, tmp_path, works):
    out, _ = works("quickstart", "--output", tmp_path / "out")
    assert "take " in out.casefold()  # where no gain is shown it begins with that
    assert (tmp_path / "out" / "report.html").is_file()
    end = out[out.index("lorada predict ") :]
    assert "valid" in end
    again, _ = works("quickstart", "--output", tmp_path / "out")
    assert again[again.index("lorada predict ") :] == end


def test_its_rows_are_balanced_and_distinct():
    with resolve("builtin:syllogisms.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["label"] for row in rows) == {"valid": 1500, "invalid": 1500}
    assert len({row["text"] for row in rows}) == 3000
