"""The command ``plot``: draws figures of the paper and loss curves."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorada.cli.app import (
    DataDir,
    app,
    console,
    importing,
    loaded_run,
    suggest,
    waiting,
)
from lorada.cli.queue_options import (
    AUTO,
    Cluster,
    GpusPerJob,
    Shard,
    Workers,
    check_outcomes,
    check_queue,
    split_seeds,
)

SUFFIXES = (".png", ".svg")
PICTURES = ("1", "3", "4", "loss")
MOST_RUNS = {"1": 1, "3": 1, "4": 0}  # runs for a picture; loss takes any number


def figure_1(found: dict[str, Any], *paths: Path) -> None:
    """Draw the maps of one head as Figure 1; ``found`` is what ``sentence_maps`` returns."""
    from lorada.paper.figures import attention_maps

    title = f"{found['layer']}, head {found['head']}"
    attention_maps(found["tokens"], found["maps"], *paths, title=title)


@app.command()
def plot(
    what: Annotated[str, typer.Argument(help=f"one of {', '.join(PICTURES)}")],
    runs: Annotated[list[Path] | None, typer.Argument(help="finished runs (1, 3, loss)")] = None,
    text: Annotated[
        str, typer.Option(help="the sentence that 1 shows")
    ] = "an exquisitely written and superbly acted film that moved me deeply",
    rows: Annotated[int, typer.Option(min=1, help="test rows that 3 looks at")] = 64,
    scale: Annotated[str | None, typer.Option(help="paper or local")] = None,
    seeds: Annotated[str | None, typer.Option(help="of the sweep of 4, with commas")] = None,
    resume: Annotated[bool, typer.Option(help="run only what has no result yet, for 4")] = False,
    overwrite: Annotated[bool, typer.Option(help="delete results first, for 4")] = False,
    results: Annotated[Path, typer.Option(help="where results are kept")] = Path("docs/results"),
    output: Annotated[
        Path, typer.Option(help="folder of the picture; runs of 4 are in runs")
    ] = Path("docs"),
    data: Annotated[
        str | None, typer.Option(help="rows that 3 looks at; else the run's own")
    ] = None,
    workers: Workers = AUTO,
    gpus_per_job: GpusPerJob = 1.0,
    cluster: Cluster = None,
    shard: Shard = None,
    data_dir: DataDir = None,
) -> None:
    """Draw a figure of the paper, or loss curves."""
    given = len(runs or [])
    if given > MOST_RUNS.get(what, given):
        raise ValueError(f"lorada plot {what} takes {MOST_RUNS[what] or 'no'} run, not {given}")
    if what in ("1", "3", "loss"):
        if not runs:
            raise ValueError(f"lorada plot {what} needs a run: lorada plot {what} RUN")
        if what == "loss":
            _plot_losses(runs, output)
        elif what == "1":
            _plot_maps(runs[0], text, output)
        else:
            _plot_layers(runs[0], rows, output, data, data_dir)
    elif what == "4":
        pool, part = check_queue(workers, gpus_per_job, cluster, shard)
        _plot_sweep(
            scale, seeds, results, output, data_dir, resume=resume, overwrite=overwrite,
            pool=pool, part=part,
        )  # fmt: skip
    else:
        raise ValueError(f"no picture {what!r}: there are {', '.join(PICTURES)}")


def _plot_losses(runs: list[Path], output: Path) -> None:
    from lorada.cli.run_commands import suggest_scoring
    from lorada.paper.figures import loss_png
    from lorada.runs.recipe import RECIPE_FILE, saved_recipe
    from lorada.runs.result import read_result

    histories = {str(run): read_result(run)["history"] for run in runs}
    draw("loss", output, lambda *paths: loss_png(histories, *paths))
    suggest_scoring(runs[0], saved_recipe(runs[0] / RECIPE_FILE))


def _plot_maps(run: Path, text: str, output: Path) -> None:
    from lorada.runs.folder import finished_run
    from lorada.support.errors import refuse_empty

    recipe = finished_run(run)
    refuse_empty(text)
    loaded = loaded_run(run, recipe.model, remote=False, quiet=False)
    from lorada.explore.explore import sentence_maps

    found = sentence_maps(loaded, text)
    draw("figure1", output, lambda *paths: figure_1(found, *paths))
    suggest("explore", run, "--text", "TEXT", "--maps")


def _plot_layers(
    run: Path, rows: int, output: Path, data: str | None, data_dir: str | None
) -> None:
    from lorada.cli.run_commands import scored_run
    from lorada.paper.figures import layers_figure

    recipe = scored_run(run, data, data_dir)
    loaded = loaded_run(run, recipe.model, remote=False, quiet=False)
    from lorada.explore.explore import ratios_by_layer

    layers = ratios_by_layer(loaded, rows, data, data_dir)
    draw("figure3", output, lambda *paths: layers_figure(layers, *paths))
    for one in layers["layers"]:
        line = f"{one['layer']}: map {100 * one['map_negative_ratio']:.1f}% below 0, fused "
        console.print(f"{line}{100 * one['negative_ratio']:.1f}%", highlight=False)
    suggest("explore", run, "--text", "TEXT", "--maps")


def _plot_sweep(
    scale: str | None, seeds: str | None, results: Path, output: Path, data_dir: str | None,
    *, resume: bool, overwrite: bool, pool: Any,
    part: tuple[int, int] | None,
) -> None:  # fmt: skip
    from lorada.cli.table_command import check_table, print_progress, scale_named

    figure = check_table("figure4", scale, data_dir, resume=resume, overwrite=overwrite)
    chosen = split_seeds(seeds)
    with importing():
        from lorada.paper.table_runs import jobs, run_all

        at = scale_named(scale)
    found = jobs(figure, at, seeds=chosen, results=results, output=Path("runs"), data_dir=data_dir)
    complete, outcomes = run_all(
        found, say=print_progress, resume=resume, overwrite=overwrite,
        pool=pool(), part=part,
    )  # fmt: skip
    if any(complete):
        for note in figure.differs if at == "local" else []:
            console.print(f"• {note}", highlight=False)
        _draw_sweep(figure.title, at, found, complete, output)
        suggest("table", "5", "--scale", at, "--results", results, "--dry-run")
    check_outcomes(outcomes, print_progress)


def _draw_sweep(
    title: str, scale: str, found: list[Any], complete: list[Any], output: Path
) -> None:
    """Draw Figure 4 from the results that are there."""
    from lorada.paper.figures import sweep_figure
    from lorada.support.metric_names import main_metric

    scores: dict[tuple[int, int], list[float]] = {}
    metric = model = ""
    for job, result in zip(found, complete, strict=True):
        if result:
            lmam, model = result["recipe"]["parts"]["lmam"], result["model"]
            metrics = result["metrics"][job.tasks[0]]
            metric = main_metric(metrics)
            scores.setdefault((lmam["heads"], lmam["rank"]), []).append(metrics[metric])
    fewest, most = min(map(len, scores.values())), max(map(len, scores.values()))
    seeds = f"{most} seed{'s' if most > 1 else ''}"
    seeds = seeds if fewest == most else f"{fewest} to {seeds}"
    title = f"{title} ({model}, {scale} scale, {seeds})"
    draw("figure4", output, lambda *paths: sweep_figure(scores, *paths, title=title,
                                                         metric=f"{metric} (%)"))  # fmt: skip


def draw(name: str, folder: Path, write: Any) -> None:
    """Draw a picture as PNG and SVG, and print the paths, or which package is missing."""
    paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    try:
        with waiting("drawing"):
            write(*paths)
    except ImportError as error:
        console.print(str(error), highlight=False)
        return
    console.print(", ".join(map(str, paths)), highlight=False, soft_wrap=True)
