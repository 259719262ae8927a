"""Writes docs/published.md and its picture: what printed differences exceed by their rows alone.

    PYTHONPATH=scripts python studies/published/page.py

Nothing is trained. The paper's numbers are those of ``published.yaml``; those of PEFT's
``method_comparison`` were taken from its repository by hand, with their commit.

An accuracy p on n rows has the variance p(1 - p)/n. If two methods were right on rows that have
nothing to do with each other, their difference would have the sum of both variances; if they are
right on the same rows as far as possible, d - d² over n. The answers of two methods trained from
one model agree more often than by chance, so its standard error lies between the two.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from marked import write_part
from matplotlib.figure import Figure

from lorada.decision.statistics import holm
from lorada.paper.table_lines import load_published

ROOT = Path(__file__).parents[2]
PEFT = Path(__file__).with_name("peft_method_comparison.json")
PAGE, PICTURE = (ROOT / "docs" / name for name in ("published.md", "published.png"))
Z = NormalDist().inv_cdf(0.975)

# Rows that each score is over: test sets of commonsense and arithmetic (LLM-Adapters), GLUE's
# validation sets. None where a score is no mean over rows (F1).
ROWS: dict[str, int | None] = {
    "boolq": 3270, "piqa": 1838, "siqa": 1954, "hellaswag": 10042, "winogrande": 1267,
    "arc_easy": 2376, "arc_challenge": 1172, "openbookqa": 500,
    "aqua": 254, "gsm8k": 1319, "mawps": 238, "svamp": 1000,
    "mnli": 9815, "mnli_matched": 9815, "mnli_mismatched": 9832, "sst2": 872, "qqp": 40430,
    "qnli": 5463, "stsb": 1500, "mrpc": 408, "rte": 277, "cola": 1043, "qqp_f1": None,
}  # fmt: skip
# Scores that are correlations; their standard error is (1 - r²)/√n.
CORRELATIONS = ("stsb", "cola")
MEAN = "mean"
RESULTS, PLUGINS, ABLATIONS = (4, 5, 8, 11), (6, 18), (13, 14)
# Title, the rule that picks the other row, and the tables of each section of the page.
SECTIONS = (
    (
        "Tables of results: LoRaDA beside the highest other method",
        "The other is the row with the highest printed mean among all methods that are not the "
        "paper's, on the same model and\nwhatever its size; full fine-tuning is left out. Only "
        "where the paper prints LoRaDA at two sizes (Table 5) does each\nstand beside the highest "
        "of its own size.",
        RESULTS,
    ),
    (
        "The map on top of a method",
        "The other is the same method without the map, as the paper prints it.",
        PLUGINS,
    ),
    ("Ablations: the whole method beside each", "The other is the ablation.", ABLATIONS),
)


@dataclass(frozen=True)
class Difference:
    """One printed difference: a row of a table minus another, in one column.

    Attributes:
        points: the difference.
        apart: its standard error if rows have nothing to do with each other, in points.
        alike: its standard error if answers agree on as many rows as they can, in points.
    """

    table: int
    row: str
    against: str
    column: str
    points: float
    apart: float
    alike: float

    @property
    def exceeds(self) -> bool:
        """Whether it exceeds 1.96 of the larger standard error."""
        return abs(self.points) > Z * self.apart


def variance(column: str, score: float) -> float | None:
    """The variance of a score in percent that its number of rows gives, in points²."""
    rows = ROWS.get(column)
    if rows is None:
        return None
    share = score / 100
    one = 1 - share**2 if column in CORRELATIONS else math.sqrt(share * (1 - share))
    return (100 * one) ** 2 / rows


def difference(table: int, names: tuple[str, str], column: str, a: float, b: float) -> Difference:
    """The difference of two scores of one column that has rows."""
    variances = [variance(column, score) for score in (a, b)]
    assert None not in variances
    apart = math.sqrt(sum(v for v in variances if v is not None))
    gap = abs(a - b) / 100
    alike = 100 * math.sqrt((gap - gap**2) / ROWS[column])  # type: ignore[operator]
    if column in CORRELATIONS:
        alike = 0.0  # of two correlations on the same rows, any
    return Difference(table, *names, column, a - b, apart, alike)


def pairs(table: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The rows of a table whose difference the paper's text reads.

    A method with the map against the same without it; a row of the paper's own against the highest
    mean of the others on the same model, whatever their size; the whole method against each of its
    ablations.
    """
    rows = load_published(table)["rows"]
    if table in PLUGINS:
        named = {row["key"]: row for row in rows}
        yield from ((row, named[key.removesuffix("+lmam")]) for key, row in named.items()
                    if key.endswith("+lmam"))  # fmt: skip
    elif table in ABLATIONS:
        yield from ((rows[0], row) for row in rows[1:])
    else:
        own = [row for row in rows if is_own(row)]
        for row in own:
            others = [
                one
                for one in rows
                if not is_own(one) and one.get("model") == row.get("model") and one["key"] != "full"
            ]
            # A method printed at two sizes (Table 5) stands beside the others of each size.
            if sum(same_method(one, row) for one in own) > 1:
                others = [one for one in others if one["params"] == row["params"]]
            if others:
                yield row, max(others, key=lambda one: one["scores"][-1])


def is_own(row: dict[str, Any]) -> bool:
    """Whether a row is of the paper's own method."""
    return "lorada" in row["key"]


def same_method(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows are one method on one model, perhaps at two sizes."""
    return (row["label"], row.get("model")) == (other["label"], other.get("model"))


def differences(table: int) -> list[Difference]:
    """Every printed difference of a table in a column with rows, and in the mean of its columns."""
    found = []
    for row, other in pairs(table):
        model = row.get("model", "")
        names = f"{model} {sized(row)}".strip(), sized(other)
        columns = load_published(table)["columns"]
        each = [
            difference(table, names, column, a, b)
            for column, a, b in zip(columns, row["scores"], other["scores"], strict=True)
            if ROWS.get(column) is not None and a is not None and b is not None
        ]
        found += each
        if each:  # the printed mean is over all columns, the error over those with rows
            k = len(each)
            apart, alike = (
                math.sqrt(sum(getattr(one, name) ** 2 for one in each)) / k
                for name in ("apart", "alike")
            )
            points = sum(one.points for one in each) / k
            found.append(Difference(table, *names, MEAN, points, apart, alike))
    return found


def sized(row: dict[str, Any]) -> str:
    """The label of a row with its trained parameters, as printed."""
    return f"{row['label']} ({row['params']})"


def against_the_best(peft: dict[str, Any]) -> list[float]:
    """Holm's p of each adapter against the highest, by the larger standard error; 1 for itself."""
    adapters, rows = peft["adapters"], peft["test_rows"]
    best = adapters[0]["accuracy"] / 100
    ps = []
    for one in adapters[1:]:
        share = one["accuracy"] / 100
        error = math.sqrt((best * (1 - best) + share * (1 - share)) / rows)
        ps.append(2 * (1 - NormalDist().cdf(abs(best - share) / error)))
    return [1.0, *holm(ps)]


def by_pair(table: int) -> Iterator[list[Difference]]:
    """The differences of each pair of rows of a table, their mean last."""
    found: dict[tuple[str, str], list[Difference]] = {}
    for one in differences(table):
        found.setdefault((one.row, one.against), []).append(one)
    return iter(found.values())


def paper_lines(tables: tuple[int, ...]) -> Iterator[str]:
    """One line for each pair of rows."""
    yield "| table | row | against | mean | standard error | exceed | largest that does not |"
    yield "|--:|---|---|--:|--:|--:|---|"
    for table in tables:
        for *each, mean in by_pair(table):
            within = max((one for one in each if not one.exceeds), default=None,
                         key=lambda one: abs(one.points))  # fmt: skip
            largest = "–"
            if within is not None:
                largest = f"{within.column} {within.points:+.1f} ({within.apart:.1f})"
            points = f"**{mean.points:+.1f}**" if mean.exceeds else f"{mean.points:+.1f}"
            yield (
                f"| {table} | {mean.row} | {mean.against} | {points} | {mean.alike:.2f} "
                f"to {mean.apart:.2f} | {sum(one.exceeds for one in each)} of {len(each)} "
                f"| {largest} |"
            )


def draw(peft: dict[str, Any]) -> None:
    """Each adapter of PEFT's comparison with its 95 % interval by rows."""
    adapters, rows = peft["adapters"], peft["test_rows"]
    figure = Figure(figsize=(7, 10), layout="constrained")
    axis = figure.subplots()
    for place, (one, p) in enumerate(zip(adapters, against_the_best(peft), strict=True)):
        share = one["accuracy"] / 100
        reach = 100 * Z * math.sqrt(share * (1 - share) / rows)
        style = {"color": "#0072B2", "fmt": "o"} if p >= 0.05 else {"color": "#777777", "fmt": "s"}
        axis.errorbar(one["accuracy"], -place, xerr=reach, ms=3.5, lw=1, **style)
    places = [-place for place in range(len(adapters))]
    axis.set_yticks(places, [one["name"] for one in adapters], fontsize=6)
    axis.set_ylim(-len(adapters), 1)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel(f"accuracy in percent, with the 95 % interval of {rows:,} rows")
    axis.set_title("blue circles: not significantly below the highest", fontsize=9)
    figure.savefig(PICTURE, dpi=110)


def short(peft: dict[str, Any]) -> Iterator[str]:
    """What the numbers come to, in lines."""
    adapters, rows = peft["adapters"], peft["test_rows"]
    alike = sum(p >= 0.05 for p in against_the_best(peft))
    last = adapters[alike - 1]
    tasks, own = (
        [one for table in tables for one in differences(table) if one.column != MEAN]
        for tables in ((*RESULTS, *PLUGINS, *ABLATIONS), RESULTS)
    )
    yield (
        f"- **The paper.** {sum(one.exceeds for one in tasks)} of {len(tasks)} printed differences "
        f"in single columns exceed {Z:.2f} standard errors; of the {len(own)} in Tables 4, 5, 8 "
        f"and 11, where LoRaDA stands beside the best other method, {sum(o.exceeds for o in own)}."
    )
    size = [one["parameters"] for one in adapters[:alike]]
    yield (
        f"- **PEFT's comparison.** {alike} of {len(adapters)} adapters are not significantly below "
        f"the highest, from {adapters[0]['name']} ({adapters[0]['accuracy']:.1f} %) to "
        f"{last['name']} ({last['accuracy']:.1f} %), with {min(size):,} to {max(size):,} trained "
        f"parameters. Two adapters near 50 % that are compared alone differ significantly from "
        f"{100 * Z * math.sqrt(0.5 / rows):.1f} points on."
    )


def generated(peft: dict[str, Any]) -> str:
    """All that is made of numbers."""
    parts = ["", *short(peft), ""]
    for title, rule, tables in SECTIONS:
        parts += [f"## {title}", "", rule, "", *paper_lines(tables), ""]
    parts += [
        "## PEFT's method comparison", "",
        f"{len(peft['adapters'])} adapters of {peft['model']} on {peft['test_rows']:,} rows: "
        f"{peft['task']}, one seed each, commit `{peft['commit'][:8]}` of {peft['date']}.", "",
        "![Each adapter with its 95 % interval](published.png)", "",
    ]  # fmt: skip
    return "\n".join([*parts, ""])


if __name__ == "__main__":
    numbers = json.loads(PEFT.read_text(encoding="utf-8"))
    write_part(PAGE, "studies/published/page.py", generated(numbers))
    draw(numbers)
