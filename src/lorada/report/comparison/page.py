"""Writes the page of a comparison: one HTML file that works offline and asks for nothing.

Its scripts are inlined, Vega's among them. vl-convert comes with the extra ``compare``.
"""

from functools import cache
from pathlib import Path
from urllib.parse import quote

from lorada.report.comparison.charts import (
    COSTS,
    interval_chart,
    loss_charts,
    pareto_charts,
    rate_chart,
    score_unit,
    scored,
)
from lorada.report.comparison.summary import Summary
from lorada.report.comparison.table import table_columns, table_rows
from lorada.report.html import render_page
from lorada.support.errors import needs_extra
from lorada.support.files import file_name

with needs_extra("compare"):
    import vl_convert

HERE = Path(__file__).parent


def comparison_page(summary: Summary) -> str:
    """The page as HTML; the same summary always gives the same page."""
    costs, losses = pareto_charts(summary), loss_charts(summary)
    specs = {f"cost-{name}": spec for name, spec in costs.items()}
    specs |= {f"loss-{number}": spec for number, spec in enumerate(losses.values())}
    for name, chart in (("intervals", interval_chart), ("rates", rate_chart)):
        if spec := chart(summary):
            specs[name] = spec
    return render_page(
        HERE,
        f"Comparison: {summary.model} on {summary.task}",
        [_vega(), (HERE / "page.js").read_text(encoding="utf-8")],
        summary=summary,
        columns=table_columns(summary),
        rows=table_rows(summary),
        unit=score_unit(summary),
        scored=scored(summary),
        specs=specs,
        costs={f"cost-{name}": COSTS[name][1] for name in costs},
        budgets={f"loss-{number}": budget for number, budget in enumerate(losses)},
        texts=any(one.text for one in summary.disagreements),
        folders=run_folders(summary),
    )


def run_folders(summary: Summary) -> dict[str, dict[int, str]]:
    """Links from the comparison's folder to its run folders: label → seed → quoted path."""
    return {
        line.label: {
            seed: f"runs/{quote(file_name(line.method), safe='')}/{line.trainable}/seed{seed}/"
            for seed in line.seeds
        }
        for line in summary.lines
        if line.seeds
    }


@cache  # it takes a second
def _vega() -> str:
    """The script that draws charts: Vega, Vega-Lite and Vega-Embed."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
