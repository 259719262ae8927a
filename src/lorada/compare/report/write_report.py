"""Writes the report of a comparison: a page, and the same as JSON."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lorada.compare.read_results import CandidateResult, read_comparison
from lorada.compare.report.expected_loss_plot import cost_picture
from lorada.compare.report.summarize_comparison import Baseline, Summary, summarize
from lorada.support.files import json_text, write_atomic
from lorada.support.html import render_page
from lorada.support.tables import NOTHING

SAME = 0.05  # points by which a metric may differ from the score and be shown as one number
Row = tuple[str, str, list[str], list[str]]  # name, kind, what stands beside the name, and cells


def write_report(
    folder: Path, metric: str | None = None, margin: float | None = None, unit: str | None = None
) -> tuple[Summary, list[Path]]:
    """Write ``report.html`` and ``report.json`` into a comparison's folder.

    The comparison need not be finished: the report then says what is missing. ``metric`` is what
    methods are compared by, ``margin`` what a cheaper candidate may cost in its unit; None for the
    comparison's own. ``unit`` is that of a user's function. Returns what the report shows, and the
    written files, the page first.
    """
    summary = summarize(read_comparison(folder, metric, unit), margin)
    texts = {"html": page(summary), "json": json_text(summary.plain()) + "\n"}
    paths = {folder / f"report.{kind}": text for kind, text in texts.items()}
    for path, text in paths.items():
        write_atomic(path, text)
    return summary, list(paths)


def page(summary: Summary) -> str:
    """The page as HTML: one file that works offline and asks for nothing, without a script."""
    header, rows = table(summary)
    return render_page(
        Path(__file__).parent,
        f"Comparison: {summary.model} on {summary.task}",
        [],
        summary=summary,
        header=header,
        rows=rows,
        note=note(summary),
        scored=summary.scored,
        picture=cost_picture(summary),
        texts=any(one.text for one in summary.disagreements),
        trials={line.label: trials for line in summary.lines if (trials := _trials(line))},
    )


def _trials(line: CandidateResult) -> list[str]:
    """The rates that a candidate's search tried, from the lowest on, each with its loss."""
    if line.search is None:
        return []
    settings = line.candidate.choices
    texts = []
    for trial in sorted(line.search.trials, key=lambda one: (one.choice, one.rate, one.map_factor)):
        setting = f"{settings[trial.choice].method}, " if settings else ""
        map_rate = "" if trial.map_rate is None else f" (map {trial.map_rate:.2g})"
        outcome = "failed or diverged" if trial.loss is None else f"{trial.loss:.4f}"
        texts.append(f"{setting}{trial.rate:.2g}{map_rate}: {outcome}")
    return texts


def note(summary: Summary) -> str:
    """What the columns of the table are."""
    return (
        f"{summary.scale.title.capitalize()}: {summary.scale.unit}, with its 95 % interval, the "
        f"mean over {summary.rows} rows and the seeds. Candidates that share a letter (group) are "
        "not significantly different. p: chance of such a difference between equal methods, "
        "corrected for the number of tests (Holm). Expected loss: how far the true mean is "
        "expected to be from the best one. Forgetting: growth of the model's loss on a neutral "
        "text. Time: the median of a run's steps, of the fastest run. Runs that shared a device or "
        "a processor have slowed each other down, so their times can be compared only roughly."
    )


def table(summary: Summary) -> tuple[list[str], list[Row]]:
    """The headings, and the rows: candidates in the order of the summary, then baselines.

    A kind is ``best``, ``scored``, ``failed`` or ``baseline``. There is a cell for each column but
    the first; what is in brackets explains the number before.
    """
    columns, rows = _columns(summary), list[Row]()
    for line in summary.lines:
        take = bool(summary.best) and line.label == summary.best
        kind = "failed" if line.score is None else "best" if take else "scored"
        notes = ["the one to take" if take else "", line.sizes, line.reason or ""]
        cells = [cell_of(line) for _, cell_of in columns]
        rows.append((line.label, kind, [each for each in notes if each], cells))
    for one in summary.baselines:
        notes = [f"answer: {one.answer}" if one.answer is not None else "", one.reason or ""]
        cells = [_score(summary, one), *[NOTHING] * (len(columns) - 1)]
        rows.append((one.name, "baseline", [each for each in notes if each], cells))
    return ["candidate", *(title for title, _ in columns)], rows


def _columns(summary: Summary) -> list[tuple[str, Callable[[CandidateResult], str]]]:
    """The heading of each column but the first, and what it has of a candidate.

    The main metric has a column only if it differs from the score.
    """
    form, pairs = summary.scale.form, [(line.score, line.value) for line in summary.lines]
    own = any(s is not None and v is not None and abs(s - v) > SAME for s, v in pairs)
    return [
        (f"{summary.scale.title} (95 % interval)", lambda one: _score(summary, one)),
        *([(summary.metric, lambda one: _number(one.value, ".2f"))] if own else []),
        ("expected loss", lambda one: _number(one.expected_loss, form)),
        ("group", lambda one: one.letter or NOTHING),
        ("p (against the highest)", lambda one: _probability(one.p_best)),
        ("trained parameters (of the model)", _trained),
        ("peak memory (GiB)", lambda one: _number(one.peak_memory_gib, ".2f")),
        ("time (s/step)", lambda one: _number(one.seconds_per_step, ".3f")),
        ("merges", lambda one: {None: NOTHING, True: "yes", False: "no"}[one.candidate.mergeable]),
        ("forgetting (nats/token)", lambda one: _number(one.forgetting, "+.3f")),
        ("learning rate", lambda one: _noted(
            _rates(one.rates), f"map {_rates(one.map_rates)}" if one.map_rates else "")),
    ]  # fmt: skip


def _noted(text: str, note: str) -> str:
    return f"{text} ({note})" if note else text


def _trained(one: CandidateResult) -> str:
    plan = one.candidate
    share = [] if plan.percent is None else [f"{plan.percent:.3f} %"]
    share += ["above the budget"] if any(plan.budgets.values()) else []
    return _number(plan.trainable, ",d", ", ".join(share))


def _score(summary: Summary, one: CandidateResult | Baseline) -> str:
    form = summary.scale.form
    known = one.low is not None and one.high is not None
    return _number(one.score, form, f"{one.low:{form}} to {one.high:{form}}" if known else "")


def _number(value: float | None, form: str, note: str = "") -> str:
    return NOTHING if value is None else _noted(format(value, form), note)


def _probability(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else _number(value, ".3f")


def _rates(rates: Sequence[float]) -> str:
    """Learning rates from the lowest on: one, or the lowest and the highest."""
    return (
        " to ".join(dict.fromkeys(f"{rate:.2g}" for rate in (*rates[:1], *rates[-1:]))) or NOTHING
    )
