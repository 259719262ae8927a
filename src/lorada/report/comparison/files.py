"""Writes a summary as Markdown, CSV, LaTeX and JSON."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lorada.report.comparison.facts import rates_text
from lorada.report.comparison.summary import Baseline, Line, Summary
from lorada.report.comparison.verdict import LOSSES
from lorada.report.render import NOTHING, bar, latex_cells
from lorada.support.errors import needs_extra
from lorada.support.files import json_text, write_atomic

ABOVE = "*"  # behind the parameters of a candidate that is above a budget


def write_files(summary: Summary, folder: Path) -> list[Path]:
    """Write ``report.md``, ``report.csv``, ``report.tex`` and ``report.json`` into a folder.

    Raises:
        ImportError: if pandas is missing, naming the extra.
    """
    texts = {
        "md": markdown(summary),
        "csv": comma_separated(summary),
        "tex": latex(summary),
        "json": json_text(asdict(summary)) + "\n",
    }
    paths = {folder / f"report.{kind}": text for kind, text in texts.items()}
    for path, text in paths.items():
        write_atomic(path, text)
    return list(paths)


def columns(summary: Summary) -> dict[str, Callable[[Line], str]]:
    """The columns of the table: heading → what a line shows there."""
    scored = [line for line in summary.lines if line.score is not None]
    digits = digits_of(summary)
    against = {line.against for line in scored} - {""}
    found: dict[str, Callable[[Line], str]] = {
        "method": lambda line: line.label,
        "trained": lambda line: _trained(line),
        "score": lambda line: _score(line, digits),
        "group": lambda line: line.letter or NOTHING,
    }
    if against:
        found["p against"] = lambda line: (
            f"{_p(line.p_against)} ({line.against})" if line.against else NOTHING
        )
    found["p to best"] = lambda line: _p(line.p_best)
    if any(abs((line.value or 0.0) - (line.score or 0.0)) > 0.05 for line in scored):
        found[summary.metric] = lambda line: _number(line.value, f".{digits}f")
    return found | {
        "adapter MB": lambda line: _number(line.adapter_mb, ".2f"),
        "memory GiB": lambda line: _number(line.peak_memory_gib, ".2f"),
        "s/step": lambda line: _number(line.seconds_per_step, ".3g"),
        "merges": lambda line: NOTHING if line.mergeable is None else _yes(line.mergeable),
        "forgetting": lambda line: _number(line.forgetting, "+.3f"),
        "rate": lambda line: rates_text(line.rates),
    }


def markdown(summary: Summary) -> str:
    """The whole summary as a Markdown page."""
    lines = [f"# Comparison of methods: {_plain(summary.model)}, {_plain(summary.task)}", ""]
    lines += [f"**{_plain(summary.verdict)}**", "", *_bullets(summary.sentences), ""]
    found = columns(summary)
    scored = [line for line in summary.lines if line.score is not None]
    lines += _table(list(found), [[show(line) for show in found.values()] for line in scored])
    unit = "minus the loss in nats" if summary.metric == LOSSES else "percent"
    lines += [
        f"Score: {unit}, with its 95 % interval. {ABOVE}: above its budget. Candidates that share "
        "a letter (group) cannot be told apart. p: chance of such a difference between equal "
        "methods, corrected for the number of tests (Holm). Forgetting: growth of the model's loss "
        "on a neutral text, in nats per token. s/step: measured at the end for all in turns, "
        "because the times of the runs depend on what ran beside them.",
        "",
    ]  # fmt: skip
    lines += [
        "## Without training",
        "",
        *_bullets(_baseline(one, digits_of(summary)) for one in summary.baselines),
        "",
    ]
    commands = [f"{command}  # {what}" for what, command in summary.commands.items()]
    if commands:
        lines += ["## Commands", "", "```bash", *commands, "```", ""]
    lines += [f"[{what}]({quote(page)})" for what, page in summary.pages.items()]
    if summary.disagreements:
        rows = [
            [one.rows, str(one.row), ", ".join(one.right), ", ".join(one.wrong)]
            for one in summary.disagreements
        ]
        lines += ["## Rows on which candidates disagree", ""]
        lines += _table(["rows", "row", "right in most seeds", "wrong"], rows)
    facts = [
        f"seeds: {', '.join(map(str, summary.seeds))}",
        *(f"machine: {machine}" for machine in summary.hardware),
        ", ".join(f"{package} {version}" for package, version in summary.versions.items()),
    ]
    lines += ["## Runs", "", *_bullets(filter(None, facts)), *_bullets(summary.notes), ""]
    return "\n".join(lines)


def comma_separated(summary: Summary) -> str:
    """The lines as CSV, with all fields of ``Line``."""
    with needs_extra("compare"):
        import pandas

    rows = [
        {**asdict(line), **{k: " ".join(map(str, getattr(line, k))) for k in ("seeds", "rates")}}
        for line in summary.lines
    ]
    frame = pandas.DataFrame(rows, columns=list(Line.__dataclass_fields__))
    frame["trainable"] = frame["trainable"].astype("Int64")  # whole numbers, though some lack one
    text: str = frame.to_csv(index=False)
    return text


def latex(summary: Summary) -> str:
    """The table as a LaTeX ``tabular`` for booktabs, with the verdict as a comment above it."""
    with needs_extra("compare"):
        import pandas

    found = columns(summary)
    cells = [
        latex_cells([_one_line(show(line)) for show in found.values()])
        for line in summary.lines
        if line.score is not None
    ]
    frame = pandas.DataFrame(cells, columns=latex_cells(list(found)))
    table: str = frame.to_latex(
        index=False, escape=False, column_format="l" + "r" * (len(found) - 1)
    )
    said = [summary.verdict, *summary.sentences]
    return "".join(f"% {_one_line(sentence)}\n" for sentence in said) + table


def digits_of(summary: Summary) -> int:
    """The decimal places of scores."""
    return 3 if summary.metric == LOSSES else 1


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    rule = "|---|" + "--:|" * (len(header) - 1)
    return [bar(header), rule, *(bar([_plain(cell) for cell in row]) for row in rows), ""]


def _bullets(sentences: Any) -> list[str]:
    return [f"- {_plain(sentence)}" for sentence in sentences]


def _baseline(one: Baseline, digits: int) -> str:
    named = one.name if one.answer is None else f"{one.name} ({one.answer})"
    if one.score is None:
        return f"{named}: no score, because {one.reason}"
    low, score, high = (_number(v, f".{digits}f") for v in (one.low, one.score, one.high))
    return f"{named}: {score} ({low} to {high})"


def _trained(line: Line) -> str:
    if line.trainable is None:
        return NOTHING
    share = "" if line.percent is None else f" ({line.percent:.3g}%)"
    return f"{line.trainable:,}{share}{ABOVE if line.above else ''}"


def _score(line: Line, digits: int) -> str:
    low, score, high = (_number(v, f".{digits}f") for v in (line.low, line.score, line.high))
    return f"{score} ({low} to {high})"


def _p(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _plain(text: str) -> str:
    """The text in one line, with no tag for Markdown to read."""
    return _one_line(text).replace("&", "&amp;").replace("<", "&lt;")
