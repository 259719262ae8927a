"""Commands that draw: the paper's figures, the maps of a user's own sentence, curves of runs."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lorada.cli.app import DataDir, Json, Remote, RunFolder, app, console, print_json, suggest

SUFFIXES = (".png", ".svg")
PICTURES = ("1", "3", "4", "loss", "scatter")
MOST_RUNS = {"1": 1, "3": 1, "4": 0, "scatter": 0}  # that a picture shows; loss shows any number
Text = Annotated[str, typer.Option(help="the sentence to show")]


@app.command()
def explain(
    run: RunFolder,
    text: Text,
    layer: Annotated[int | None, typer.Option(help="which layer with a map; else the last")] = None,
    head: Annotated[int | None, typer.Option(help="which head; else the strongest map's")] = None,
    remote: Remote = False,
    as_json: Json = False,
) -> None:
    """Show what a run's maps do to a sentence: Figure 1, and the effect size of every layer."""
    from lorada.run.loaded import load_run
    from lorada.run.pictures import sentence_maps

    found = sentence_maps(load_run(run, trust_remote_code=remote), text, layer, head)
    if as_json:
        print_json(found)
        return
    shown = Table("layer", "effect size", "map below 0", "fused below 0")
    for one in found["layers"]:
        shown.add_row(
            one["layer"], f"{one['effect_size']:.4f}",
            f"{100 * one['map_negative_ratio']:.1f}%", f"{100 * one['negative_ratio']:.1f}%",
        )  # fmt: skip
    console.print(shown)
    _draw("explain", run, lambda path: _figure_1(found, path))
    suggest(f"lorada plot 3 {run}")


def _figure_1(found: dict[str, Any], path: Path) -> None:
    from lorada.report.plots import attention_maps

    title = f"{found['layer']}, head {found['head']}"
    attention_maps(found["tokens"], found["maps"], path, title)


@app.command()
def plot(
    what: Annotated[str, typer.Argument(help=f"one of {', '.join(PICTURES)}")],
    runs: Annotated[list[Path] | None, typer.Argument(help="finished runs (1, 3, loss)")] = None,
    text: Text = "an exquisitely written and superbly acted film that moved me deeply",
    rows: Annotated[int, typer.Option(min=1, help="test rows that 3 looks at")] = 64,
    table: Annotated[int, typer.Option(help="the table that scatter shows")] = 5,
    scale: Annotated[str | None, typer.Option(help="paper or local")] = None,
    seeds: Annotated[str | None, typer.Option(help="of the sweep of 4, with commas")] = None,
    resume: Annotated[bool, typer.Option(help="run only what 4 has no result of")] = False,
    overwrite: Annotated[bool, typer.Option(help="run all of 4 again")] = False,
    results: Annotated[Path, typer.Option(help="where results are kept")] = Path("docs/results"),
    output: Annotated[
        Path, typer.Option(help="folder of the picture; runs of 4 are in runs")
    ] = Path("docs"),
    data_dir: DataDir = None,
) -> None:
    """Draw a figure of the paper, loss curves, or parameters against scores."""
    given = len(runs or [])
    if given > MOST_RUNS.get(what, given):
        raise ValueError(f"lorada plot {what} takes {MOST_RUNS[what] or 'no'} run, not {given}")
    if what in ("1", "3", "loss"):
        if not runs:
            raise ValueError(f"lorada plot {what} needs a run: lorada plot {what} RUN")
        _plot_runs(what, runs, text, rows, output, data_dir)
    elif what == "4":
        _plot_sweep(scale, seeds, results, output, data_dir, resume=resume, overwrite=overwrite)
    elif what == "scatter":
        _plot_scatter(table, scale, results, output)
    else:
        raise ValueError(f"no picture {what!r}: there are {', '.join(PICTURES)}")


def _plot_runs(
    what: str, runs: list[Path], text: str, rows: int, output: Path, data_dir: str | None
) -> None:
    from lorada.report.plots import layers_figure, loss_png
    from lorada.run.result import read_result

    if what == "loss":
        histories = {str(run): read_result(run)["history"] for run in runs}
        _draw("loss", output, lambda path: loss_png(histories, path))
        suggest(f"lorada evaluate {runs[0]}")
        return
    from lorada.run.loaded import load_run
    from lorada.run.pictures import ratios_by_layer, sentence_maps

    run = load_run(runs[0])
    if what == "1":
        found = sentence_maps(run, text)
        _draw("figure1", output, lambda path: _figure_1(found, path))
        suggest(f"lorada explain {runs[0]} --text …")
        return
    layers = ratios_by_layer(run, rows, data_dir=data_dir)
    _draw("figure3", output, lambda path: layers_figure(layers, path))
    for one in layers["layers"]:
        line = f"{one['layer']}: map {100 * one['map_negative_ratio']:.1f}% below 0, fused "
        console.print(f"{line}{100 * one['negative_ratio']:.1f}%", highlight=False)
    suggest(f"lorada explain {runs[0]} --text …")


def _plot_sweep(
    scale: str | None, seeds: str | None, results: Path, output: Path, data_dir: str | None,
    *, resume: bool, overwrite: bool,
) -> None:  # fmt: skip
    from lorada.cli.paper import numbers, run_jobs, scale_named
    from lorada.report.plots import sweep_figure
    from lorada.report.tables import main_metric
    from lorada.run.table_runs import jobs
    from lorada.run.tables import load_table

    figure, at = load_table("figure4"), scale_named(scale)
    found = jobs(
        figure, at, seeds=numbers(seeds), results=results, output=Path("runs"), data_dir=data_dir
    )
    complete = run_jobs(found, at, resume=resume, overwrite=overwrite)
    scores: dict[tuple[int, int], list[float]] = {}
    metric = ""
    for job, result in zip(found, complete, strict=True):
        lmam = result["recipe"]["parts"]["lmam"]
        metrics = result["metrics"][job.tasks[0]]
        metric = main_metric(metrics)
        scores.setdefault((lmam["heads"], lmam["rank"]), []).append(metrics[metric])
    for note in figure.differs if at == "local" else []:
        console.print(f"• {note}", highlight=False)
    seeds_each = len(found) // len(scores)
    seeds_named = f"{seeds_each} seed{'s' if seeds_each > 1 else ''}"
    title = f"{figure.title} ({complete[0]['model']}, {at} scale, {seeds_named})"
    _draw("figure4", output, lambda path: sweep_figure(scores, path, title, f"{metric} (%)"))
    suggest(f"lorada plot scatter --results {results}")


def _plot_scatter(table: int, scale: str | None, results: Path, output: Path) -> None:
    from lorada.cli.paper import page_rows, say, scale_named
    from lorada.report.paper_page import averaged_columns, scatter_points
    from lorada.report.plots import scatter_figure
    from lorada.run.table_runs import stored_rows
    from lorada.run.tables import load_table

    if table in (2, 3):
        raise ValueError(f"table {table} counts operations: it has no scores to draw")
    chosen, at = load_table(f"table{table}"), scale_named(scale)
    columns = chosen.columns_of(chosen.tasks)
    if not averaged_columns(columns, chosen.mean):
        raise ValueError(f"table {table} has no mean of its columns ({', '.join(columns)}) to draw")
    rows = page_rows(stored_rows(chosen, at, None, results, report=say))
    points = scatter_points(rows, columns, chosen.mean)
    title = f"Table {table}, {at} scale: mean over {', '.join(points[0]['columns'])}"
    _draw(f"scatter-table{table}", output, lambda path: scatter_figure(points, path, title))
    suggest(f"lorada table {table} --dry-run")


def _draw(name: str, folder: Path, draw: Any) -> None:
    """Draw a picture as PNG and SVG, and say where they are or what they need."""
    try:
        for suffix in SUFFIXES:
            draw(folder / f"{name}{suffix}")
    except ImportError as error:
        console.print(str(error), highlight=False)
        return
    files = ", ".join(f"{folder / name}{suffix}" for suffix in SUFFIXES)
    console.print(files, highlight=False, soft_wrap=True)
