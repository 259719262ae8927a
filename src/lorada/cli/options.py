"""The options and arguments that several commands share, and the panels of ``lorada --help``."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from lorada.support.metric_names import names_in_words

TRAIN, COMPARE, PAPER = "Train and use", "Compare", "The paper"


COMMA = re.compile(r",(?![^\[]*\])")  # not one inside brackets, which separates items of a list
DECIMAL_COMMA = re.compile(r"\d{1,2},\d+ *%")


def named(text: str) -> list[str]:
    """Split names at commas; those inside brackets belong to a list, ``target_modules=[a,b]``."""
    if text.count("[") != text.count("]"):
        raise typer.BadParameter(f"{text!r} has a bracket without its partner")
    names = [name.strip() for name in COMMA.split(text) if name.strip()]
    if not names:
        raise typer.BadParameter(f"{text!r} has no name in it: leave it out, or name some")
    return names


def budgets_of(text: str) -> list[str]:
    """Split parameter budgets at commas, and refuse a comma that is meant as a decimal point."""
    if written := DECIMAL_COMMA.search(text):
        share = written.group()
        raise typer.BadParameter(
            f"{share} is read as two budgets: write {share.replace(',', '.')} for one share, or "
            f"{share.replace(',', '%,')} for two"
        )
    return named(text)


def seeds_of(text: str) -> list[int]:
    """Split seeds at commas."""
    from lorada.runs.recipe import refuse_seed

    try:
        found = [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text} must be whole numbers, such as 1,2,3") from error
    for seed in found:
        refuse_seed("", seed)
    return found


def columns_of(text: str) -> dict[str, str]:
    """Read ``text=review,label=sentiment``."""
    pairs = [[part.strip() for part in pair.split("=", 1)] for pair in text.split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise typer.BadParameter(f"{text} must be such as text=review,label=sentiment")
    return dict(pairs)


def metrics_of(texts: list[str] | None) -> list[str]:
    """Split metrics at commas; the file of a function may have one in its name."""
    names = list[str]()
    for text in texts or []:
        path, _, function = text.rpartition(":")
        is_one = "," not in function and Path(path).is_file()
        names += [text] if is_one else named(text)
    return list(dict.fromkeys(names))


def refuse_columns(columns: Any, data: str | None) -> None:
    """Refuse names of fields without rows that have them."""
    if columns is not None and data is None:
        raise ValueError("--columns names the fields of --data: add --data FILE")


def gpus_of(text: str) -> float:
    """Read how many GPUs a job has: a whole number, or a share such as 0.25."""
    try:
        count = float(text)
        parts = 1 / count if 0 < count < 1 else count
        is_whole = count > 0 and abs(parts - round(parts)) <= 0.01
    except (ValueError, OverflowError):  # no number, or none that can be rounded
        is_whole = False
    if not is_whole:
        raise typer.BadParameter(f"{text} must be a whole number, or one over one, such as 0.25")
    return count


METHOD = typer.Option(help="see `lorada methods`")
MODEL = typer.Option(help="hub id, folder, or a packaged name")
Metric = Annotated[str | None, typer.Option(help=names_in_words())]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help=f"{names_in_words()}. Several with commas, or repeated: the first is that of the rows",
    ),
]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, help="most tokens of an answer; else the run's limit")
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON, for programs")]
Remote = Annotated[
    bool, typer.Option("--trust-remote-code", help="run code that a model repository ships")
]
DataDir = Annotated[
    str | None, typer.Option(help="folder of the benchmarks' rows (LORADA_DATA); else the hub")
]
# The options with a parser are what it returns, or None.
Columns = Annotated[
    Any,
    typer.Option(
        parser=columns_of,
        metavar="TEXT",
        help="your names of fields, such as text=review,label=sentiment",
    ),
]
Seeds = Annotated[Any, typer.Option(parser=seeds_of, metavar="NUMBERS", help="numbers with commas")]
Overrides = Annotated[list[str] | None, typer.Argument(help="settings: key=value …")]
RunFolder = Annotated[Path, typer.Argument(help="folder of a finished run")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only say what would be run")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with what is there already")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="delete what is there first")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="how many runs at once here; else one for each GPU, or one"),
]
GpusPerJob = Annotated[
    Any,
    typer.Option(
        parser=gpus_of,
        metavar="NUMBER",
        help="GPUs that a run has: 2, or 0.25 for four runs on each GPU",
    ),
]
Cluster = Annotated[str | None, typer.Option(help="run on a Ray cluster: auto, or ray://HOST:PORT")]
