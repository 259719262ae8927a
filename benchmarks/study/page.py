"""Write the results of the study into docs/study.md, docs/study.png and docs/results/study.json.

    python benchmarks/study/page.py rows study

``rows`` and ``study`` are the folders of ``rows.py`` and ``run.py``; methods without all of their
runs are left out.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import hypotheses
import lengths
import numpy as np
from bootstrap import interval
from hypotheses import Found
from kept import finished
from library.page import write_marked
from run import (
    ABLATIONS,
    ADAPTER_7,
    COMPARISONS,
    DORA_4,
    FULL_RATES,
    HEAD,
    LORA,
    LORA_4,
    MOVED,
    PRINTED,
    PRINTED_ON_LORA,
    RATES,
    SMALL,
)

from lorada.compare.report.read import CandidateResult
from lorada.compare.statistics import detectable, paired_p
from lorada.support.files import json_text, write_atomic

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = "study/page.py"
NAMES = {
    HEAD: "head alone", LORA: "LoRA r 1", LORA_4: "LoRA r 4",
    SMALL: "printed map, r 1, one for all heads",
    PRINTED: "printed map, r 2", PRINTED_ON_LORA: "LoRA r 1 + printed map",
    "full": "full fine-tuning", "quanta": "QuanTA", DORA_4: "DoRA r 4",
    ADAPTER_7: "Adapter-FFN r 7",
    **{each: f"printed map, {each.rpartition('=')[2].replace('_', ' ')}" for each in ABLATIONS},
}  # fmt: skip
PLUGIN_NAMES = {"dora": "DoRA r 1", "adapter_ffn": "Adapter-FFN r 1", "quanta": "QuanTA"}
SECTIONS = {
    "syllogism": "Syllogisms: one fixed form", "sst2": "SST-2: free sentences",
    "syllogism8": "Syllogisms behind up to 8 words",
    "syllogism32": "Syllogisms behind up to 32 words", "stsb": "STS-B: pairs of sentences",
    "family": "Family relationships: stories of varying length",
    "syllogism_methods": "The methods of Table 4 at 0.2 % on syllogisms",
    "syllogism_llm": "SmolLM2-135M at 0.2 % on the bundled syllogisms",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("study", type=Path)
    given = parser.parse_args()
    found = read(given.study)
    kept = list(summary(found))
    write_atomic(DOCS / "results" / "study.json", json_text(kept) + "\n")
    lines = [*power(found), *hypotheses.tables(found, title), *tables(found)]
    if "sst2" in found:
        lines += [*lengths.table(found["sst2"], given.rows, title), *by_rate(kept)]
    write_marked(DOCS / "study.md", SCRIPT, "\n".join(["", *lines, ""]))
    draw(found)


def read(study: Path) -> Found:
    """The candidates of all comparisons that have every run, by rows and method."""
    found: Found = {}
    for name, asked in COMPARISONS.items():
        alone = asked.budget or asked.rates not in (RATES, FULL_RATES)
        for each in finished(study / name):
            found.setdefault(name if alone else asked.rows, {})[each.method] = each
    return found


def title(method: str) -> str:
    """The name of a method in tables."""
    if method in NAMES:
        return NAMES[method]
    name, *settings = method.split(":")
    plain, plus, _ = name.partition("+")
    if not settings and not plus:  # at a budget
        return f"`{name}`"
    return PLUGIN_NAMES[plain] + (" + printed map" if plus else "")


def summary(found: Found) -> Iterator[dict[str, Any]]:
    """What is kept of each candidate."""
    for task, methods in found.items():
        for method, each in methods.items():
            low, high = interval(each.scores)
            yield {
                "rows": task, "method": method, "parameters": each.trainable,
                "learning_rate": each.searches[0].get("rate"), "held_out": each.scores.shape[1],
                "score": each.scores.mean(), "low": low, "high": high, "loss": each.losses.mean(),
                "runs": {
                    run.seed: {"score": score, "loss": loss}
                    for run, score, loss in zip(
                        each.runs, each.scores.mean(axis=1), each.losses.mean(axis=1), strict=True
                    )
                },
            }  # fmt: skip


def power(found: Found) -> Iterator[str]:
    """The smallest differences that a test of two methods could show, for 5, 10 and 20 seeds."""
    yield "### What could be shown"
    yield ""
    yield "Smallest difference in points that one test finds with 80 % power, from the measured"
    yield "spread over rows and seeds:"
    yield ""
    yield "| rows | 5 seeds | 10 seeds | 20 seeds | spread of LoRA r 1 over 5 seeds |"
    yield "|---|--:|--:|--:|--:|"
    for task, methods in found.items():
        several = [each.scores for each in methods.values()]
        if len(several) > 1 and LORA in methods:
            cells = [f"{detectable(several, seeds=seeds):.1f}" for seeds in (5, 10, 20)]
            spread = methods[LORA].scores.mean(axis=1).std(ddof=1)
            yield f"| `{task}` | {' | '.join(cells)} | ± {spread:.1f} |"
    yield ""


def tables(found: Found) -> Iterator[str]:
    """A table for each task: every method with its size, rate, score and loss."""
    for task, heading in SECTIONS.items():
        methods = found.get(task, {})
        if not methods:
            continue
        yield f"### {heading}"
        yield ""
        yield "| method | parameters | rate | score (95 %) | against LoRA | p | held-out loss |"
        yield "|---|--:|--:|--:|--:|--:|--:|"
        for method, each in sorted(methods.items(), key=lambda pair: -pair[1].scores.mean()):
            low, high = interval(each.scores)
            trained = 0 if method == HEAD else each.trainable
            versus = "– | –"
            lora = LORA if LORA in methods else "lora"
            if lora in methods and method != lora:
                other = methods[lora].scores
                versus = (
                    f"{each.scores.mean() - other.mean():+.1f} | {paired_p(each.scores, other):.2g}"
                )
            yield (
                f"| {title(method)} | {trained:,} | {each.searches[0]['rate']:.2g} | "
                f"{each.scores.mean():.1f} ({low:.1f} to {high:.1f}) | {versus} | "
                f"{np.nanmean(each.losses):.3f} |"
            )
        yield ""


def by_rate(kept: list[dict[str, Any]]) -> Iterator[str]:
    """The printed map and the head alone on SST-2 at each rate that they were run at."""
    yield "### SST-2 at each learning rate"
    yield ""
    yield "The same rate for head and map; both chose 1.2e-2. Mean and standard deviation of the"
    yield "seeds, and the held-out loss (no hypothesis: looked at afterwards):"
    yield ""
    yield "| rate | head alone | its loss | printed map, r 2 | its loss | difference |"
    yield "|--:|--:|--:|--:|--:|--:|"
    rows: dict[float, dict[str, dict[str, Any]]] = {}
    for each in kept:
        if each["rows"].startswith("sst2") and each["method"] in MOVED:
            rows.setdefault(each["learning_rate"], {})[each["method"]] = each
    for rate, each in sorted(rows.items()):
        cells = [f"{rate:.2g}"]
        for method in MOVED:
            spread = np.std([run["score"] for run in each[method]["runs"].values()], ddof=1)
            cells += [f"{each[method]['score']:.1f} ± {spread:.1f}", f"{each[method]['loss']:.3f}"]
        cells.append(f"{each[PRINTED]['score'] - each[HEAD]['score']:+.1f}")
        yield f"| {' | '.join(cells)} |"
    yield ""


def draw(found: Found) -> None:
    """The figure: score over trained parameters, a panel for each task, methods by number."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = [task for task in SECTIONS if PRINTED in found.get(task, {}) and len(found[task]) > 6]
    figure, axes = pyplot.subplots(
        len(tasks), 1, figsize=(9.5, 4.6 * len(tasks)), layout="constrained", squeeze=False
    )
    for axis, task in zip(axes[:, 0], tasks, strict=True):
        _draw_panel(axis, found[task])
        axis.set_title(SECTIONS[task], fontsize=10, loc="left")
    axes[-1][0].set_xlabel("trained parameters, without the head")
    figure.savefig(DOCS / "study.png", dpi=110)


def _draw_panel(axis: Any, methods: dict[str, CandidateResult]) -> None:
    """The methods of one task; the list beside them has their names, the best first."""
    if HEAD in methods:
        head = methods[HEAD].scores.mean()
        axis.axhline(head, color="grey", linestyle=":", linewidth=1)
        axis.annotate(f"head alone {head:.1f}", (45, head), fontsize=7, color="grey", va="bottom")
    shown = [(m, each) for m, each in methods.items() if m != HEAD and m not in ABLATIONS]
    shown.sort(key=lambda pair: -pair[1].scores.mean())
    for number, (method, each) in enumerate(shown, start=1):
        low, high = interval(each.scores)
        mean, size = each.scores.mean(), each.trainable
        stacked, mapped = "+" in method, "lmam" in method
        color = "#d55e00" if stacked and mapped else "#0072b2" if mapped else "#000000"
        axis.errorbar(
            size, mean, [[mean - low], [high - mean]], marker="s" if stacked else "o",
            color=color, markersize=4, elinewidth=0.7, alpha=0.9,
        )  # fmt: skip
        axis.annotate(
            str(number), (size, mean), fontsize=8, xytext=(4, 1), textcoords="offset points",
            color=color,
        )  # fmt: skip
        axis.text(
            1.02, 1 - 0.043 * number, f"{number}  {title(method)}  {mean:.1f}", fontsize=8,
            color=color, transform=axis.transAxes,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlim(40, 4e7 if "full" in methods else 2e5)
    axis.set_ylabel("accuracy, 95 % interval", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
