"""The table of what a training step costs, as a page (docs/costs.md) and on the terminal."""

from typing import Any

from pairs import PAIRS
from rich.console import Console
from rich.table import Table

LIMIT = 1.15  # of the ratio that a method may have
HEADER = ("method", "against", "ms", "ms of the other", "ratio", "pair by pair", "processor time")


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    spread = f"{row['lowest']:.2f}–{row['highest']:.2f}"
    return [name, row["against"], f"{row['ours_ms']:.0f}", f"{row['other_ms']:.0f}",
            f"{row['ratio']:.3f}", spread, f"{row['processor_ratio']:.3f}"]  # fmt: skip


def page(results: dict[str, Any]) -> str:
    """docs/costs.md."""
    settings, rows = results["settings"], results["rows"]
    machine, packages = settings["hardware"], settings["versions"]
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(cells(name, rows[name])) + " |" for name in PAIRS if name in rows]
    above = [n for n in PAIRS if n in rows and PAIRS[n].same and rows[n]["ratio"] > LIMIT]
    verdict = (
        f"Above {LIMIT}: {', '.join(above)}."
        if above
        else f"No method is above {LIMIT} times its other side."
    )
    if missing := [name for name in PAIRS if name not in rows]:
        verdict += f" Not measured yet: {', '.join(missing)}."
    scores = next((row["scoring"] for row in rows.values() if "scoring" in row), None)
    return TEMPLATE.format(
        cpu=machine["cpu"], threads=settings["threads"], torch=packages["torch"],
        peft=packages["peft"], transformers=packages["transformers"], model=settings["model"],
        batch=settings["batch"], length=settings["length"], data=settings["data"],
        repetitions=settings["repetitions"], table="\n".join(lines), verdict=verdict,
        scoring="" if scores is None else SCORING.format(**scores),
    )  # fmt: skip


TEMPLATE = """# What a training step costs

A step of each method (forward, backward, the optimizer's update and what the method's procedure
adds to it), beside the same method without this package: PEFT's own class where PEFT has the
method, else the equations written straight into the `forward` of the model's modules
(`benchmarks/direct.py`). This page is made by

```text
make bench BENCH=                                 # what is missing of the table
python benchmarks/costs.py --methods lmam,ist     # these rows again
```

**Setting.** `{model}`, {batch} × {length} tokens of `{data}`, fp32, {cpu}, {threads} threads; torch
{torch}, transformers {transformers}, peft {peft}. Before a row is timed, both sides do a step with
the same parameters on the same batch: loss and all gradients must agree within 1e-4, and so must
the updates, within 1 % of their size (but for prefix tuning, whose keys PEFT keeps turned by their
positions). Then both models take steps in turn, {repetitions} each. Given are the medians, their
ratio, the lowest and highest ratio of two steps taken one after the other, and the ratio of the
processor time of all threads, which other programs on the machine disturb less. `noise` is LoRA
beside itself: a ratio that differs from 1 by no more than that row's spread says nothing. In
*padded* rows the samples of a batch have different lengths.

{table}

{verdict} `lora+lmam` is no such comparison: it says what a map on every layer costs on top of LoRA.
SoRA and AdaLoRA, which the paper has on encoders, are placed on all linears of the decoder here.
OwLore's projections and outlier ratios, which are not computed at every step, are not in its
figure. Not in the table are BitFit, which LLaMA has no biases for, and methods that the paper does
not have on LLaMA: Houlsby, Pfeiffer,
PA(attn)+PA(ffn), Prefix+LoRA(ffn), MAM.
{scoring}"""

SCORING = """
**IST's scores.** Every ten steps IST compares three sets of layers by a forward each on 16 rows. At
16 rows a step that takes {scores_ms:.0f} ms, against {ist_ms:.0f} ms for a step of IST (a quarter
of the layers trains) and {lora_ms:.0f} ms for one of LoRA: {of_ist_percent:.1f} % on top of IST's
own steps, {of_lora_percent:.1f} % of LoRA's.
"""


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(*HEADER)
    for name in PAIRS:
        if name in results["rows"]:
            table.add_row(*cells(name, results["rows"][name]))
    Console().print(table)
    for row in results["rows"].values():
        if "scoring" in row:
            print(SCORING.format(**row["scoring"]).strip())
