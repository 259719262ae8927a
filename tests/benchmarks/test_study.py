"""The study's scripts: pages are made of what is kept, rows are fair, and verdicts are true."""

import importlib
import re
import shutil
import sys

import pytest
from paths import ROOT

STUDY = ROOT / "studies" / "trained"


@pytest.fixture
def study(monkeypatch):
    """Imports a script of the study; its neighbours are found, as when it is run."""
    monkeypatch.syspath_prepend(str(STUDY))
    yield importlib.import_module
    for script in STUDY.glob("*.py"):
        sys.modules.pop(script.stem, None)


NUMBER = re.compile(r"\d+(?:\.\d+)?")


@pytest.mark.parametrize(
    ("name", "pages", "pictures"),
    [pytest.param("second", ["studies/map"], ["studies/study2"], marks=pytest.mark.more),
     ("third", ["studies/map"], []),
     pytest.param("atlas", ["atlas", "studies/atlas"], ["atlas", "studies/atlas-pairs"],
                  marks=pytest.mark.more)],
    ids=["second", "third", "atlas"],
)  # fmt: skip
def test_a_page_and_its_pictures_are_made_of_what_is_kept(
    name, pages, pictures, study, tmp_path, monkeypatch
):
    script = study(name)
    (tmp_path / "studies").mkdir()
    for page in pages:
        shutil.copy(ROOT / f"docs/{page}.md", tmp_path / f"{page}.md")
    monkeypatch.setattr(script, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    script.main()
    for page in pages:
        ours, expected = (folder / f"{page}.md" for folder in (tmp_path, ROOT / "docs"))
        ours, expected = ours.read_text(encoding="utf-8"), expected.read_text(encoding="utf-8")
        assert NUMBER.sub("#", ours) == NUMBER.sub("#", expected)
        # Expected losses are means of draws, which another processor's rounding may shift.
        numbers, others = ([*map(float, NUMBER.findall(text))] for text in (ours, expected))
        assert numbers == pytest.approx(others, abs=0.11 if name == "atlas" else 0)
    assert all((tmp_path / f"{picture}.png").is_file() for picture in pictures)


def test_held_out_rows_share_no_text_with_training_rows(study, tmp_path, monkeypatch):
    rows = study("rows")
    monkeypatch.setattr(rows, "TRAIN", 40)
    monkeypatch.setattr(rows, "HELD_OUT", 20)
    phrases = [f"phrase number {i % 70} of a longer sentence" for i in range(200)]
    data = {
        "train": [{"sentence": text, "label": i % 2} for i, text in enumerate(phrases)],
        "validation": [{"sentence": phrases[0] + " with an end", "label": 0}],
    }
    monkeypatch.setattr(rows, "read", lambda folder, task, split: iter(data[split]))
    train, held_out = rows.glue(tmp_path, "sst2")
    assert len(train) == 40
    assert held_out
    for row in held_out:
        assert not any(row["text"] in one["text"] or one["text"] in row["text"] for one in train)
