"""Score trained maps of the second study again, cut to positions that enough training rows had.

    python benchmarks/study/reach.py rows study

``rows`` and ``study`` are the folders of ``rows.py`` and ``run.py``. Nothing is trained: the maps
were learned whole, and ``min_rows`` is set afterwards, to a share of the training rows. Writes
``reach.json`` into the folder of each comparison; what is scored is not scored again.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from run import COMPARISONS, LEFT_ON_LORA, PRINTED_ON_LORA

from lorada.inference.evaluate import score, scoring
from lorada.inference.load import Run, load_run
from lorada.report.comparison.read import ScoredRun, read_comparison
from lorada.runs.data.rows import load_rows
from lorada.support.files import json_text, write_atomic
from lorada.tuners.lmam import LmamLayer

SHARES = (0.1, 0.3, 0.5)  # of the training rows
CUT = (PRINTED_ON_LORA, LEFT_ON_LORA)
CUT_IN = ("syllogism_starts", "sst2_even_starts")
# Method → share → seed → the scores and the losses of all rows.
Reach = dict[str, dict[str, dict[str, dict[str, list[float]]]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("study", type=Path)
    given = parser.parse_args()
    for name in CUT_IN:
        if (given.study / name / "plan.json").is_file():
            rows = given.rows / f"{COMPARISONS[name].rows}_test.jsonl"
            score_all(given.study / name, rows)


def score_all(comparison: Path, rows: Path) -> None:
    """Score every finished run of a comparison at every share."""
    path = comparison / "reach.json"
    found: Reach = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for candidate in read_comparison(comparison).candidates:
        for run in candidate.runs if candidate.method in CUT else ():
            by_share = found.setdefault(candidate.method, {})
            if all(str(run.seed) in by_share.get(str(share), {}) for share in SHARES):
                continue
            for share, scored in cut(comparison, run, rows).items():
                by_share.setdefault(str(share), {})[str(run.seed)] = scored
            write_atomic(path, json_text(found) + "\n")


def cut(comparison: Path, run: ScoredRun, rows: Path) -> dict[float, dict[str, list[float]]]:
    """The scores and losses of a run's rows at each share, in the order of the file."""
    loaded = load_run(comparison / run.folder)
    held_out = load_rows(str(rows), loaded.form, loaded.labels)
    found = {}
    for share in SHARES:
        leave_out(loaded, share)
        with scoring(loaded, base=False):
            lines = score(loaded, held_out)[1]
        found[share] = {key: [line[key] for line in lines] for key in ("score", "loss")}
        print(f"{comparison.name} {run.folder} {share:.0%}: {fmean(found[share]['score']):.2f}")
    return found


def leave_out(run: Run, share: float) -> None:
    """Cut the maps of a loaded run to positions that this share of its training rows had."""
    for layer in run.model.modules():
        if isinstance(layer, LmamLayer):
            for config in layer.configs.values():
                counts: Any = config.rows_by_position
                config.min_rows = max(1, round(share * counts[0]))
            layer.bake()


if __name__ == "__main__":
    main()
