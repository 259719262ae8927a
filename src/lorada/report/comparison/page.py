"""Writes the page of a comparison: one HTML file that works offline and asks for nothing.

Its scripts are inlined, Vega's among them. Its security policy allows only these scripts, by their
hashes, and no connection. All names and texts are escaped by Jinja. Jinja and vl-convert come with
the extra ``compare``.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote

from lorada.report.comparison.charts import (
    COSTS,
    MOST_SEEDS,
    Curve,
    interval_chart,
    loss_charts,
    pareto_charts,
    scored,
)
from lorada.report.comparison.summary import Baseline, Line, Search, Summary
from lorada.support.errors import needs_extra

with needs_extra("compare"):
    import jinja2
    import vl_convert
    from markupsafe import Markup

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Column:
    """A column of the page's table.

    Attributes:
        title: its heading.
        unit: smaller text below the heading.
        first: the order that the first click sorts by, ``ascending`` or ``descending``.
    """

    title: str
    unit: str = ""
    first: str = "ascending"


@dataclass(frozen=True)
class Cell:
    """A cell of the page's table.

    Attributes:
        text: what is shown.
        value: what its column is sorted by; a cell with an empty value comes last.
        note: smaller text below.
    """

    text: str = "–"
    value: float | str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A row of the page's table: a candidate or a baseline.

    Attributes:
        name: its heading.
        kind: ``best``, ``scored``, ``failed`` or ``baseline``.
        notes: smaller texts below the name.
        cells: one for each column but the first.
    """

    name: str
    kind: str
    notes: list[str]
    cells: list[Cell]


def comparison_page(summary: Summary, curves: Mapping[str, Sequence[Curve]]) -> str:
    """The page as HTML; the same summary always gives the same page.

    Args:
        summary: what the page shows.
        curves: label → the training loss of each seed: (step, nats per token).
    """
    costs, losses = pareto_charts(summary), loss_charts(summary, curves)
    specs = {f"cost-{name}": spec for name, spec in costs.items()}
    specs |= {f"loss-{number}": spec for number, spec in enumerate(losses.values())}
    if intervals := interval_chart(summary):
        specs["intervals"] = intervals
    scripts = [
        _vega(),
        (HERE / "page.js").read_text(encoding="utf-8"),
    ]
    page = _environment().get_template("page.html.j2").render(
        summary=summary,
        columns=_columns(summary),
        rows=[_candidate(line, summary.best) for line in summary.lines]
        + [_baseline(one) for one in summary.baselines],
        scored=scored(summary),
        specs=specs,
        costs={f"cost-{name}": COSTS[name][1] for name in costs},
        budgets={f"loss-{number}": budget for number, budget in enumerate(losses)},
        methods=list(dict.fromkeys(line.method for line in scored(summary))),
        few_methods=MOST_SEEDS,
        texts=any(one.text for one in summary.disagreements),
        search=_search(summary.search),
        folders=run_folders(summary),
        policy=" ".join(f"'sha256-{_hash(script)}'" for script in scripts),
        scripts=[Markup(script) for script in scripts],
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
    )  # fmt: skip
    return page


def run_folders(summary: Summary) -> dict[str, dict[int, str]]:
    """Links from the comparison's folder to its run folders: label → seed → quoted path."""
    return {
        line.label: {
            seed: f"runs/{quote(line.method, safe='')}/{line.trainable}/seed{seed}/"
            for seed in line.seeds
        }
        for line in summary.lines
        if line.seeds
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


@cache  # it takes a second
def _vega() -> str:
    """The script that draws charts: Vega, Vega-Lite and Vega-Embed."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _hash(script: str) -> str:
    """A script's hash, as a security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _columns(summary: Summary) -> list[Column]:
    references = {line.against for line in summary.lines if line.against}
    reference = references.pop() if len(references) == 1 else "the reference"
    return [
        Column("candidate"),
        Column("score", "95 % interval", "descending"),
        Column("group"),
        Column("p", f"against {reference}"),
        Column("p", "against the best"),
        Column("trained parameters", "of the model"),
        Column("adapter", "MB"),
        Column("peak memory", "GiB"),
        Column("time", "s/step"),
        Column("merges"),
        Column("forgetting", "nats/token"),
        Column("learning rate"),
    ]


def _candidate(line: Line, best: str) -> Row:
    take = bool(best) and line.label == best
    kind = "failed" if line.score is None else "best" if take else "scored"
    notes = [
        "the one to take" if take else "",
        line.sizes,
        "above its budget: it has no smaller size" if line.above else "",
        line.reason or "",
    ]
    share = "" if line.percent is None else f"{line.percent:.3g} %"
    merges = {None: Cell(), True: Cell("yes", 1), False: Cell("no", 0)}
    cells = [
        _score(line),
        Cell(line.letter, line.letter) if line.letter else Cell(),
        _probability(line.p_against),
        _probability(line.p_best),
        _number(line.trainable, ",d", share),
        _number(line.adapter_mb, ".3g"),
        _number(line.peak_memory_gib, ".2f"),
        _number(line.seconds_per_step, ".3g"),
        merges[line.mergeable],
        _number(line.forgetting, "+.3f"),
        Cell() if line.rate is None else Cell(f"{line.rate:.1e}".replace("e-0", "e-"), line.rate),
    ]
    return Row(line.label, kind, [note for note in notes if note], cells)


def _baseline(one: Baseline) -> Row:
    notes = [f"answer: {one.answer}" if one.answer is not None else "", one.reason or ""]
    cells = [_score(one), *[Cell()] * 10]
    return Row(one.name, "baseline", [note for note in notes if note], cells)


def _search(search: Search) -> str:
    if not search.trials:
        return "the methods' defaults, without a search"
    ended = f"{search.pruned} stopped early, {search.diverged} diverged"
    return f"{search.trials} trials ({ended}) in {search.seconds / 60:.1f} min"


def _score(one: Line | Baseline) -> Cell:
    interval = "" if one.low is None or one.high is None else f"{one.low:.1f} to {one.high:.1f}"
    return _number(one.score, ".1f", interval)


def _number(value: float | None, form: str, note: str = "") -> Cell:
    return Cell() if value is None else Cell(format(value, form), value, note)


def _probability(value: float | None) -> Cell:
    if value is not None and value < 0.001:
        return Cell("< 0.001", value)
    return _number(value, ".3f")
