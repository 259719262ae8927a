"""Take a picture of a comparison's report: the verdict, how sure it is, and the picture of scores.

    python scripts/report_picture.py docs/compare.png

The report is written anew from the rows that the atlas has kept of the syllogisms; what its search
tried is not kept. It needs playwright and Chromium.
"""

import gzip
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from playwright.sync_api import sync_playwright

from lorada.compare.read_results import read_comparison
from lorada.compare.report.summarize_comparison import summarize
from lorada.compare.report.write_report import page as report_page

ATLAS = Path(__file__).parents[1] / "docs" / "results" / "atlas.json.gz"
TASK, ROWS, WIDE = "syllogism", "syllogism_test.jsonl", 1480
TOTAL = 22_713_216  # parameters of minilm-l6
MERGED = ("lora", "dora", "adalora", "ia3", "bitfit")
TOP = "one => one.getBoundingClientRect().top + scrollY"


def write_comparison(folder: Path) -> None:
    """The folder of the comparison, as far as the atlas has kept it."""
    kept = json.loads(gzip.decompress(ATLAS.read_bytes()))[TASK]
    plan, seeds = [], range(1, 6)
    for method, one in kept.items():
        size = one["parameters"]
        plan.append({
            "method": method, "budgets": {"0.2%": False}, "trainable": size,
            "percent": 100 * size / TOTAL, "mergeable": method in MERGED,
        })  # fmt: skip
        every = one["rates"] * (len(seeds) if len(one["rates"]) == 1 else 1)  # one search, or each
        for seed, scores, losses, rate in zip(
            seeds, one["scores"], one["losses"], every, strict=True
        ):
            run = folder / "runs" / method / str(size) / f"seed{seed}"
            _write(run / "result.json", {
                "labels": ["No", "Yes"], "form": "label", "history": [],
                "metrics": {ROWS: {"n": len(scores), "accuracy": sum(scores) / len(scores)}},
                "peak_memory_bytes": one["memory"], "seconds_per_step": one["seconds"],
                "recipe": {"training": {"learning_rate": rate}},
            })  # fmt: skip
            lines = [
                {"rows": ROWS, "row": number, "answer": "", "score": score, "loss": loss,
                 "metrics": {"accuracy": score}}
                for number, (score, loss) in enumerate(zip(scores, losses, strict=True), 1)
            ]  # fmt: skip
            (run / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rest = {
        "steps": 0, "batch": 0, "dev_rows": 0, "train": {"file": "", "rows": 0, "sha256": ""},
        "overlap": 0, "metric": None,
        "versions": {}, "hardware": {},
    }  # fmt: skip
    _write(
        folder / "plan.json",
        {"candidates": plan, "held_out": {ROWS: {"rows": 0, "sha256": ""}}, **rest},
    )
    reasons = {"as_it_is": "its head is drawn at random", "commonest": "half of the rows are Yes"}
    _write(folder / "baselines.json", {key: {"reason": text} for key, text in reasons.items()})
    asked = {"recipe": {"model": "minilm-l6"}, "seeds": list(seeds)}
    (folder / "comparison.yaml").write_text(yaml.safe_dump(asked))


def _write(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def main(picture: Path) -> None:
    with TemporaryDirectory() as folder:
        write_comparison(Path(folder))
        summary = summarize(read_comparison(Path(folder)))
        # That is said where no search is stored.
        known = [one for one in summary.sentences if not one.startswith("No learning rate")]
        written = Path(folder, "report.html")
        written.write_text(report_page(replace(summary, sentences=tuple(known))))
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDE, "height": 900})
            page.goto(written.as_uri())
            end = page.locator("#candidates").evaluate(TOP)
            shown = {"x": 0, "y": 0, "width": WIDE, "height": end}
            page.screenshot(path=picture, full_page=True, clip=shown)
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
