"""The table of what a training step of each method costs, for docs/methods.md and the terminal."""

from collections.abc import Iterable
from typing import Any

from library.page import markdown_table, print_table

SCRIPT = "measure_method_costs.py"
LIMIT = 1.15  # the most that lorada's time may be, as a multiple of the reference's
HEADER = (
    "row", "reference", "lorada, ms", "reference, ms", "ratio", "ratios of single turns",
    "ratio of processor time",
)  # fmt: skip


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """One line of the table; a method without a reference has its own time only."""
    if "ratio" not in row:
        return [name, "none", f"{row['ours_ms']:.0f}", "–", "–", "–", "–"]
    single = f"{row['lowest']:.2f}–{row['highest']:.2f}"
    return [name, row["against"], f"{row['ours_ms']:.0f}", f"{row['other_ms']:.0f}",
            f"{row['ratio']:.3f}", single, f"{row['processor_ratio']:.3f}"]  # fmt: skip


def lines(results: dict[str, Any], names: Iterable[str]) -> list[list[str]]:
    """The lines of the rows that are measured."""
    return [cells(name, results["rows"][name]) for name in names if name in results["rows"]]


def page(results: dict[str, Any], names: Iterable[str]) -> str:
    """The section of docs/methods.md.

    Args:
        results: what is measured so far.
        names: every row, in the order of the table.
    """
    settings, rows = results["settings"], results["rows"]
    machine, packages = settings["hardware"], settings["versions"]
    names = list(names)
    # A row that compares other things than a method with itself has no limit.
    above = [n for n in names if "+lmam" not in n and rows.get(n, {}).get("ratio", 0) > LIMIT]
    verdict = (
        f"Above {LIMIT} times the reference: {', '.join(above)}."
        if above
        else f"No method takes more than {LIMIT} times as long as its reference."
    )
    if missing := [name for name in names if name not in rows]:
        verdict += f" Not measured yet: {', '.join(missing)}."
    scores = next((row["scoring"] for row in rows.values() if "scoring" in row), None)
    return TEMPLATE.format(
        cpu=machine["cpu"], threads=settings["threads"], torch=packages["torch"],
        peft=packages["peft"], transformers=packages["transformers"], model=settings["model"],
        batch=settings["batch"], length=settings["length"], data=settings["data"],
        repetitions=settings["repetitions"], table=markdown_table(HEADER, lines(results, names)),
        verdict=verdict, scoring="" if scores is None else SCORING.format(**scores),
    )  # fmt: skip


TEMPLATE = """
The time of a training step of each method (forward and backward pass, the optimizer's update, and
what the method's callbacks add), beside the same method without this package, its *reference*. The
reference is PEFT's own class where PEFT has the method. Other parts are written straight into the
`forward` of the model's modules, from their equations
(`benchmarks/library/handwritten_methods.py`). Made by

```text
make bench BENCH=                                               # what is missing of the table
python benchmarks/measure_method_costs.py --rows lmam,ist       # these rows again
```

**Setting.** `{model}`, {batch} × {length} tokens of `{data}`, fp32, {cpu}, {threads} threads; torch
{torch}, transformers {transformers}, peft {peft}.

**Check.** Before a row is timed, both models take a step with the same parameters on the same
batch. Loss and gradients must agree within 1e-4, and the updates within 1 % of their size. The
update of prefix tuning is not compared, because PEFT holds its keys rotated by their positions.

**Times.** Both models take steps in turns, {repetitions} each. The table has the medians in
milliseconds, the ratio of the medians, and the lowest and highest ratio of a single turn. The last
column is the ratio of the processor time of all threads, which other programs on the machine
disturb less. Row `noise` is LoRA beside a second copy of itself: a ratio is no difference if it is
as near to 1 as the ratios of that row. In *padded* rows the samples of a batch have different
lengths.

{table}

{verdict}

- `lora+lmam` is compared to LoRA without a map, so its ratio says what a map on every layer adds.
- SoRA and AdaLoRA, which the paper has on encoders, are placed on all linear layers of the decoder.
- OwLore's time leaves out its projections and outlier ratios, which most steps do not compute.
- The table leaves out BitFit, because LLaMA has no biases, and methods that the paper does not have
  on LLaMA and that have no reference, such as Houlsby, Pfeiffer, PA(attn)+PA(ffn),
  Prefix+LoRA(ffn) and MAM.
{scoring}"""

SCORING = """
**IST's scores.** Every ten steps IST compares three sets of layers, by one forward pass each on 16
rows. That takes {scores_ms:.0f} ms. With 16 rows, a step of IST (a quarter of the layers trains)
takes {ist_ms:.0f} ms and a step of LoRA {lora_ms:.0f} ms. So the scores add {of_ist_percent:.1f} %
to IST's own steps, which is {of_lora_percent:.1f} % of LoRA's.
"""


def show(results: dict[str, Any], names: Iterable[str]) -> None:
    """Print the table."""
    print_table(HEADER, lines(results, names))
    for row in results["rows"].values():
        if "scoring" in row:
            print(SCORING.format(**row["scoring"]).strip())
