"""The study's scripts: its comparisons can be run, its rows are fair, and its tests say what is."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from library.page import END, begin_mark

STUDY = Path(__file__).parents[2] / "benchmarks" / "study"


@pytest.fixture
def study(monkeypatch):
    """Imports a script of the study; its neighbours are found, as when it is run."""
    monkeypatch.syspath_prepend(str(STUDY))
    yield importlib.import_module
    for script in STUDY.glob("*.py"):
        sys.modules.pop(script.stem, None)


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


def test_a_moved_row_ends_as_it_was(study):
    rows = study("rows")
    texts = [f"{i}. All cats are pets" for i in range(50)]
    moved = [rows.shifted({"text": text, "label": "Yes"}, 8) for text in texts]
    assert all(row["text"].endswith(text) for row, text in zip(moved, texts, strict=True))
    added = [len(row["text"].split()) - 5 for row in moved]
    assert (min(added), max(added)) == (0, 8)


def measured(kept, level, seed, seeds=5, rows=400):
    random = np.random.default_rng(seed)
    scores = 100.0 * (random.random((seeds, rows)) < level)
    losses = ((1 - level) + random.random((seeds, rows)) / 9).round(3)
    return kept.Measured(scores, losses, [3e-3] * seeds, 9216, 0.1, 2**30)


# The second study.


def words_of(second, levels):
    """The verdict of each test, where these are the true levels of method and other."""
    found = {
        "syllogism": {
            second.LEFT: measured(second, levels[0], 1),
            second.HEAD: measured(second, levels[1], 2),
        }
    }
    for better in (True, False):
        asked = second.Asked("syllogism", second.LEFT, second.HEAD, better)
        yield list(second.tests([asked], found))[2].rsplit("|", 2)[1].strip()


def test_a_verdict_follows_the_truth(study):
    second = study("second")
    assert [*words_of(second, (0.9, 0.6))] == ["better; by loss better"] * 2
    assert [*words_of(second, (0.6, 0.9))] == ["**worse**; by loss **worse**"] * 2
    same = [*words_of(second, (0.7, 0.7))]
    assert same == ["not shown; by loss not shown", "not worse; by loss not worse"]


def test_an_ablation_that_loses_is_below_the_map_in_points_and_above_it_in_loss(study):
    third, run = study("third"), study("run")
    softmax = next(each for each in run.ABLATIONS if each.endswith("softmax"))
    found = {
        "syllogism": {run.PRINTED: measured(third, 0.8, 3), softmax: measured(third, 0.5, 4)}
    }  # fmt: skip
    lines = list(third.page(found))
    assert "1 of 4 tests have all of their runs." in lines
    (line,) = [line for line in lines if line.startswith("| `syllogism` | map, softmax | map")]
    cells = line.split(" | ")
    assert cells[4].startswith("-")
    assert cells[7].startswith("+0.3")


def test_what_is_kept_stays_where_it_is_not_found_again(study, tmp_path):
    kept, path = study("kept"), tmp_path / "kept.json.gz"
    old, new = measured(kept, 0.8, 1), measured(kept, 0.6, 2)
    kept.keep({"qnli": {"lora": old, "dora": old}}, path)
    kept.keep({"qnli": {"dora": new}, "syllogism": {"lora": new}}, path)
    found = kept.kept(path)
    assert {rows: [*methods] for rows, methods in found.items()} == {
        "qnli": ["lora", "dora"], "syllogism": ["lora"],
    }  # fmt: skip
    for each, expected in ((found["qnli"]["lora"], old), (found["qnli"]["dora"], new)):
        assert all(map(np.array_equal, each, expected))


def test_an_interval_of_the_picture_holds_the_truth_in_19_cases_of_20(study):
    picture, held = study("picture"), []
    for seed in range(200):
        one, other = (measured(picture, 0.7, (seed, i), rows=200).scores for i in range(2))
        held.append(abs(one.mean() - other.mean()) < picture.half_width(one, other))
    assert 0.9 <= np.mean(held) <= 0.99


# The rate of a map.


BEST = {(16, 5e-2): 0.9, (4, 1e-2): 0.8}


@pytest.mark.parametrize(
    ("levels", "dearer", "taken"),
    [
        (BEST, (), "1/s = 16, 0.05"),
        (BEST, {(16, 5e-2)}, "1/s = 4, 0.01"),
        ({}, (), "1/s = 1, 0.005"),  # of equal ones today's
        ({(1, 5e-3): 0.65}, (), "1/s = 1, 0.001"),
    ],
)
def test_the_rule_takes_the_best_rate_that_no_task_loses_by(study, levels, dearer, taken):
    """Cells have these levels or 0.7, and ``dearer`` ones a higher loss on one task."""
    rates, found = study("rates"), {}
    for number, block in enumerate(rates.BLOCKS):
        for cell in rates.CELLS:
            one = measured(study("kept"), levels.get(cell, 0.7), number)
            losses = measured(study("kept"), 0.7, number).losses
            losses = losses + 0.1 * (cell in dearer and number == 0)
            found[*block, cell] = {
                seed: {"accuracy": score.mean(), "losses": loss, "relative_norm": cell[1]}
                for seed, score, loss in zip(rates.SEEDS, one.scores, losses, strict=True)
            }
    assert rates.decide(found, rates.BLOCKS)[1] == taken


# The atlas.


def test_rows_foretold_to_settle_a_pair_do_so_in_four_cases_of_five(study):
    atlas = study("atlas")

    def pair(seed, rows):
        random = np.random.default_rng(seed)
        hard = random.random(rows)  # rows are hard for both methods alike
        return [
            measured(atlas, np.clip(level + hard / 4, 0, 1), (seed, 1 + i), 20, rows)
            for i, level in enumerate((0.63, 0.60))
        ]

    rows = atlas.rows_to_settle(*pair(1, 20_000), 1)
    assert 100 < rows < 300
    found = [atlas.paired_p(*(one.scores for one in pair(seed, rows))) for seed in range(2, 200)]
    assert 0.7 <= np.mean(np.array(found) < 0.05) <= 0.9


def test_mean_ranks_leave_out_what_some_task_lacks_and_full_fine_tuning(study):
    atlas = study("atlas")
    levels = {"lora": 0.9, "dora": 0.8, "lmam": 0.6, "full": 0.95}
    methods = {name: measured(atlas, level, i) for i, (name, level) in enumerate(levels.items())}
    more = methods | {"bitfit": methods["dora"]}
    means = atlas.mean_ranks({"sst2_even": methods, "qnli": more, "syllogism": methods})
    assert means.ranks == {"lora": 1, "dora": 2, "lmam": 3}
    # Demšar (2006), Table 5: 2.343 for three methods.
    assert means.critical == pytest.approx(2.343 * (3 * 4 / (6 * 3)) ** 0.5, abs=1e-3)
    assert atlas.mean_ranks({"qnli": more}) is None


def test_the_atlas_is_written_from_what_is_kept(study, tmp_path, monkeypatch):
    atlas = study("atlas")
    levels = {"lora": 0.9, "dora": 0.89, "lmam": 0.6, "full": 0.95}
    methods = {name: measured(atlas, level, i) for i, (name, level) in enumerate(levels.items())}
    atlas.keep({"sst2_even": methods, "syllogism": methods}, tmp_path / "atlas.json.gz")
    monkeypatch.setattr(atlas, "KEPT", tmp_path / "atlas.json.gz")
    monkeypatch.setattr(atlas, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["atlas.py"])
    others = f"{begin_mark('other.py')}of another\n{END}\nAfter.\n"
    (tmp_path / "atlas.md").write_text(f"Before.\n{begin_mark(atlas.SCRIPT)}old\n{END}\n{others}")
    atlas.main()
    text = (tmp_path / "atlas.md").read_text()
    assert text.startswith("Before.")
    assert text.endswith(others)
    assert "old" not in text
    assert "2 of 3 pairs differ significantly" in text
    assert text.count("| `full` | 9,216 | 9") == 2
    assert (tmp_path / "atlas.png").is_file()
    assert (tmp_path / "atlas-pairs.png").is_file()
