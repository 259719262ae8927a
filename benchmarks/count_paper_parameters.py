"""Count every "# Params" of the paper's tables again, on the real architectures.

    python benchmarks/count_paper_parameters.py        # prints the table, writes docs/methods.md

Nothing is downloaded: models are built without weights. A figure of the paper may be p/N or
p/(N+p). It counts as equal if one of the two rounds to it, as cut if one of them cut off gives it.
"""

from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from pathlib import Path

from library.page import write_marked

from lorada.training.load_recipe import load_recipe
from lorada.training.parameter_counts import parameters_of

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
SCRIPT = Path(__file__).name


@dataclass(frozen=True)
class Row:
    """A figure that the paper prints.

    Attributes:
        table: number of the table.
        label: the paper's name of the row.
        printed: the figure as printed, in percent of the model, or with M for millions.
        method: the name of the method here.
        model: the architecture.
        overrides: settings of the row that differ from the method's.
        why: why our count gives another figure.
    """

    table: int
    label: str
    printed: str
    method: str
    model: str
    overrides: tuple[str, ...] = ()
    why: str = ""


CUT = "cut off, not rounded"
BASELINE = "the figure of the row without the map"
TABLE_16 = "Table 16's settings give this; 0.5 needs twelve map heads or a wider adapter"
AVERAGED = "an average over the run or over tasks, not a count"
OF_BART = "its share of BART, not of mBART"
GATES = ("quanta.dims=16-16-16",)

ROWS = [
    Row(4, "Prefix", "0.11", "prefix", "llama-7b", why=CUT),
    Row(4, "Series", "0.99", "series", "llama-7b"),
    Row(4, "Parallel", "3.54", "parallel", "llama-7b"),
    Row(4, "LoRA", "0.83", "lora", "llama-7b"),
    Row(4, "LoRA (r=4)", "0.10", "lora", "llama-7b", ("r=4",)),
    Row(4, "SHiRA-SNIP", "1.0", "shira", "llama-7b"),
    Row(4, "DoRA (r=4)", "0.11", "dora", "llama-7b", ("r=4",), why=CUT),
    Row(4, "DoRA (r=16)", "0.43", "dora", "llama-7b"),
    Row(4, "DoRA (r=32)", "0.84", "dora", "llama-7b", ("r=32",)),
    Row(4, "QuanTA", "0.041", "quanta", "llama-7b"),
    Row(4, "LoRaDA-LA", "0.09", "lorada_la", "llama-7b"),
    Row(4, "LoRaDA-Q", "0.044", "lorada_q", "llama-7b", why=CUT),
    Row(4, "LoRA", "0.83", "lora", "llama2-7b"),
    Row(4, "LaMDA++", "0.08", "lamda", "llama2-7b", why=AVERAGED),
    Row(4, "SHiRA-SNIP", "1.0", "shira", "llama2-7b"),
    Row(4, "OMoE-DoRA", "0.73", "omoe", "llama2-7b"),
    Row(4, "DoRA (r=16)", "0.43", "dora", "llama2-7b"),
    Row(4, "DoRA (r=32)", "0.84", "dora", "llama2-7b", ("r=32",)),
    Row(4, "QuanTA", "0.041", "quanta", "llama2-7b"),
    Row(4, "LoRaDA-LA", "0.08", "lorada_la", "llama2-7b"),
    Row(4, "LoRaDA-Q", "0.044", "lorada_q", "llama2-7b", why=CUT),
    Row(4, "LoRA", "0.70", "lora", "llama3-8b"),
    Row(4, "OMoE-DoRA", "0.75", "omoe", "llama3-8b"),
    Row(4, "DoRA (r=16)", "0.35", "dora", "llama3-8b", why="DoRA's own figure; LoRA alone is 0.35"),
    Row(4, "DoRA (r=32)", "0.71", "dora", "llama3-8b", ("r=32",)),
    Row(4, "QuanTA", "0.035", "quanta", "llama3-8b", why="QuanTA's own figure"),
    Row(4, "LoRaDA-LA", "0.05", "lorada_la", "llama3-8b"),
    Row(4, "LoRaDA-Q", "0.037", "lorada_q", "llama3-8b", why=CUT),
    Row(4, "Prefix", "0.03", "prefix", "llama-13b"),
    Row(4, "Series", "0.80", "series", "llama-13b"),
    Row(4, "Parallel", "2.89", "parallel", "llama-13b"),
    Row(4, "LoRA", "0.67", "lora", "llama-13b"),
    Row(4, "DoRA (r=16)", "0.35", "dora", "llama-13b"),
    Row(4, "QuanTA", "0.029", "quanta", "llama-13b"),
    Row(4, "LoRaDA-LA", "0.05", "lorada_la", "llama-13b"),
    Row(4, "LoRaDA-Q", "0.029", "lorada_q", "llama-13b", why="QuanTA's figure without the map"),
    Row(4, "LoRaDA-LA", "0.029", "lorada_la", "llama2-70b"),
    Row(5, "BitFit", "0.1", "bitfit", "roberta-base"),
    Row(5, "Prefix", "0.5", "prefix", "roberta-base"),
    Row(5, "LoRA", "0.5", "lora", "roberta-base"),
    Row(5, "Adapter", "0.5", "houlsby", "roberta-base"),
    Row(5, "Adapter-FFN", "0.5", "adapter_ffn", "roberta-base"),
    Row(5, "MAM Adapter", "0.5", "mam", "roberta-base"),
    Row(5, "AutoPEFT", "0.5", "autopeft", "roberta-base"),
    Row(5, "LoRaDA-A", "0.5", "lorada_a", "roberta-base", why=TABLE_16),
    Row(5, "Adapter-FFN (r=4, no biases)", "0.06", "adapter_ffn", "roberta-base",
        ("rank=4", "use_bias=false")),
    Row(5, "LoRaDA-A (r=3, one map of rank 1)", "0.06", "lorada_a", "roberta-base",
        ("lmam.heads=1", "lmam.rank=1", "bottleneck.rank=3")),
    Row(5, "LoRaDA-A (r=2, one map of rank 1)", "0.06", "lorada_a", "roberta-base",
        ("lmam.heads=1", "lmam.rank=1", "bottleneck.rank=2"), why="r=3 gives it"),
    Row(6, "Parallel+LMAM", "3.54", "parallel+lmam", "llama-7b", why=CUT),
    Row(6, "LoRA+LMAM (r=4)", "0.10", "lora+lmam", "llama-7b", ("lora.r=4",), why=BASELINE),
    Row(6, "QuanTA+LMAM", "0.044", "lorada_q", "llama-7b", why=CUT),
    Row(7, "LongLoRA", "2.1", "longlora", "llama2-7b"),
    Row(7, "LongLoRA+LMAM", "2.1", "longlora+lmam", "llama2-7b", ("lmam.length=256",)),
    Row(8, "LoRA", "0.83", "lora", "llama2-7b"),
    Row(8, "QuanTA", "0.19", "quanta", "llama2-7b", GATES),
    Row(8, "LoRaDA-Q", "0.19", "lorada_q", "llama2-7b", GATES),
    Row(9, "LoRaDA-LA ¬L", "0.32", "lorada_la", "llama-7b", ("lmam.ablation=full_rank",),
        why="0.32 without the LoRA part"),
    Row(10, "Pfeiffer adapter (r=600)", "7.2", "pfeiffer", "bart-large", why=CUT),
    Row(10, "LoRA (ffn) (r=102)", "7.2", "lora", "bart-large", why="7.2 is the size of r=120"),
    Row(10, "PA (attn) + PA (ffn)", "6.7", "pa_attn_ffn", "bart-large", why=CUT),
    Row(10, "Prefix + LoRA (ffn)", "6.7", "prefix_lora", "bart-large"),
    Row(10, "MAM Adapter", "6.7", "mam", "bart-large"),
    Row(10, "AutoPEFT", "6.7", "autopeft", "bart-large", why=CUT),
    Row(10, "LoRaDA-A", "6.7", "lorada_a", "bart-large", why=CUT),
    Row(10, "MAM Adapter (MT)", "6.7", "mam", "mbart-large", why=OF_BART),
    Row(10, "AutoPEFT (MT)", "6.7", "autopeft", "mbart-large", why=OF_BART),
    Row(10, "LoRaDA-A (MT)", "6.7", "lorada_a", "mbart-large"),
    Row(10, "LoRaDA-A (MT), 16 heads", "6.7", "lorada_a", "mbart-large", ("lmam.heads=16",),
        why="as Table 15 underlines; 4 heads give 6.7"),
    Row(11, "AdaLoRA", "1.27M", "adalora", "deberta-v3-base", why=AVERAGED),
    Row(11, "SoRA", "0.91M", "sora", "deberta-v3-base", why=AVERAGED),
    Row(11, "LoRaDA-A (r=2)", "0.29M", "lorada_a", "deberta-v3-base", ("lmam.length=128",),
        why="no reading of rank 2 and length 128 gives it"),
    Row(18, "Adapter (rank = 2)", "0.008", "series", "llama-7b", ("rank=2",)),
    Row(18, "Adapter+LMAM", "0.008", "series+lmam", "llama-7b",
        ("bottleneck.rank=2", "lmam.rank=1"), why=BASELINE),
    Row(18, "DoRA+LMAM (r=4)", "0.11", "dora+lmam", "llama-7b", ("lora.r=4",), why=BASELINE),
]  # fmt: skip


def verdict(printed: str, figures: list[float]) -> str:
    """``✓`` if a figure rounds to the printed one, ``cut`` if one cut off gives it, else ``✗``."""
    wanted = Decimal(printed.removesuffix("M"))
    step = Decimal(1).scaleb(wanted.as_tuple().exponent)
    for word, rounding in (("✓", ROUND_HALF_UP), ("cut", ROUND_DOWN)):
        if any(Decimal(str(f)).quantize(step, rounding) == wanted for f in figures):
            return word
    return "✗"


def figures_of(row: Row) -> tuple[dict, list[float]]:
    """Count the parameters of a row; also return what the printed figure may be."""
    given = {"method": row.method, "model": row.model, "output": "-"}
    counts = parameters_of(load_recipe(None, list(row.overrides), given))
    if row.printed.endswith("M"):
        return counts, [counts["trainable"] / 1e6]
    return counts, [counts["percent"], counts["percent_of_all"]]


def line(row: Row) -> str:
    """The line of a row in the table."""
    counts, figures = figures_of(row)
    found = verdict(row.printed, figures)
    name = " ".join([row.method, *row.overrides])
    return (
        f"| {row.table} | {row.label} | {row.model} | `{name}` | {counts['trainable']:,} "
        f"| {counts['percent']:.4f} | {counts['percent_of_all']:.4f} | {row.printed} | {found} "
        f"| {row.why} |"
    )


def page(lines: list[str]) -> str:
    """The section of docs/methods.md."""
    return "\n".join([HEADER, *lines]) + "\n" + FOOTER


HEADER = """
Every figure of the paper's tables that a count can give, from the real architectures, built without
weights (`python benchmarks/count_paper_parameters.py`). `lorada params` prints any other count.
Task heads are not counted, nor are networks that only training needs, such as that of a prefix. p/N
and p/(N+p) are in percent; N is the base with its pooler. ✓: one of the two rounds to the printed
figure. cut: one of the two, cut off, gives it. ✗: neither.

| table | row | model | `lorada params` | p | p/N | p/(N+p) | printed | | why not |
|---|---|---|---|---|---|---|---|---|---|"""
FOOTER = """
The table leaves out ChatGPT, full fine-tuning (100 %), and rows that print "-": IST and OwLore, in
which all parameters of LoRA or of the model exist and a part of them trains at a time. It leaves
out Table 12, which prints 0.009, 0.008, 0.05 and 0.029 for the runs of Table 4. AutoPEFT's rows are
configurations of ours at the printed budget, because none was published. LongLoRA's own code adds
one token to the vocabulary, which gives 139,730,944.
"""

if __name__ == "__main__":
    lines = []
    for row in ROWS:
        lines.append(line(row))
        print(lines[-1], flush=True)
    write_marked(PAGE, SCRIPT, page(lines))
