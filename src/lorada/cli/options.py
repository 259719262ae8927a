"""The options and arguments that several commands share, and the panels of ``lorada --help``."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from lorada.support.metric_names import names_in_words

# The panels of ``lorada --help``.
TRAIN, COMPARE, PAPER = "Train and use", "Compare", "The paper"

COMMA = re.compile(r",(?![^\[]*\])")  # not one inside brackets, which separates items of a list
DECIMAL_COMMA = re.compile(r"\d{1,2},\d+ *%")
WHOLE = 0.01  # how far 1 / share may be from a whole number: 0.33 means three jobs on a GPU

# The functions ``parse_…`` are parsers of options. typer adds the option's name to a BadParameter.


def parse_names(text: str) -> list[str]:
    """Split names at commas; those inside brackets belong to a list, ``target_modules=[a,b]``.

    Raises ``typer.BadParameter`` for a bracket without its partner, and for a text without names.
    """
    if text.count("[") != text.count("]"):
        raise typer.BadParameter(f"{text!r} has a bracket without its partner")
    names = [name.strip() for name in COMMA.split(text) if name.strip()]
    if not names:
        raise typer.BadParameter(f"{text!r} has no name in it: leave it out, or name some")
    return names


def parse_budgets(text: str) -> list[str]:
    """Split parameter budgets at commas, and refuse a comma that is meant as a decimal point."""
    decimal_comma = DECIMAL_COMMA.search(text)
    if decimal_comma is not None:
        share = decimal_comma.group()
        raise typer.BadParameter(
            f"{share} is read as two budgets: write {share.replace(',', '.')} for one share, or "
            f"{share.replace(',', '%,')} for two"
        )
    return parse_names(text)


def parse_seeds(text: str) -> list[int]:
    """Split seeds at commas into whole numbers that torch and NumPy take.

    Raises ``typer.BadParameter`` for what is no whole number, ``ValueError`` for one out of range.
    """
    from lorada.runs.recipe import refuse_seed

    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text} must be whole numbers, such as 1,2,3") from error
    for seed in seeds:
        refuse_seed("", seed)
    return seeds


def parse_shots(text: str) -> list[int]:
    """Split numbers of examples at commas.

    Raises ``typer.BadParameter`` for what is no whole number of 1 or more.
    """
    try:
        shots = [int(number) for number in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text} must be whole numbers, such as 4,8") from error
    if min(shots) < 1:
        raise typer.BadParameter(f"{text} must be 1 or more; without examples it is scored anyway")
    return shots


def parse_rates(text: str) -> list[float]:
    """Split learning rates at commas; raises ``typer.BadParameter`` for what is no number."""
    try:
        return [float(rate) for rate in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text} must be numbers, such as 1e-4,1e-3") from error


def parse_columns(text: str) -> dict[str, str]:
    """Read ``text=review,label=sentiment``: field of a form → column of the user's file.

    Raises ``typer.BadParameter`` for a pair without a field or without a column.
    """
    columns: dict[str, str] = {}
    for pair in text.split(","):
        field, _, column = pair.partition("=")
        field, column = field.strip(), column.strip()
        if not field or not column:
            raise typer.BadParameter(f"{text} must be such as text=review,label=sentiment")
        columns[field] = column
    return columns


def parse_metrics(texts: list[str] | None) -> list[str]:
    """Split metrics at commas, each once; the file of a function may have a comma in its name."""
    metrics: list[str] = []
    for text in texts or []:
        path, _, function = text.rpartition(":")
        is_function_of_file = "," not in function and Path(path).is_file()
        if is_function_of_file:
            metrics.append(text)
        else:
            metrics += parse_names(text)
    # The first is that of the rows, so a name that comes twice keeps its first place.
    return list(dict.fromkeys(metrics))


def refuse_columns(columns: Any, data: str | None) -> None:
    """Refuse names of fields without rows that have them."""
    if columns is not None and data is None:
        raise ValueError("--columns names the fields of --data: add --data FILE")


def parse_gpus(text: str) -> float:
    """Read how many GPUs a job has: a whole number, or a share such as 0.25.

    Raises ``typer.BadParameter`` for others, as Ray could not fill a GPU with jobs of 0.3.
    """
    try:
        gpus = float(text)
        # Of a share it is the number of jobs on a GPU that must be whole.
        gpus_or_jobs = 1 / gpus if 0 < gpus < 1 else gpus
        is_valid = gpus > 0 and abs(gpus_or_jobs - round(gpus_or_jobs)) <= WHOLE
    except (ValueError, OverflowError):  # no number, or one that cannot be rounded, such as inf
        is_valid = False
    if not is_valid:
        raise typer.BadParameter(f"{text} must be a whole number, or one over one, such as 0.25")
    return gpus


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
# typer needs a class as the type of an option, so those with a parser are Any: what the parser
# returns, or None.
Columns = Annotated[
    Any,
    typer.Option(
        parser=parse_columns,
        metavar="TEXT",
        help="your names of fields, such as text=review,label=sentiment",
    ),
]
Seeds = Annotated[
    Any, typer.Option(parser=parse_seeds, metavar="NUMBERS", help="numbers with commas")
]
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
        parser=parse_gpus,
        metavar="NUMBER",
        help="GPUs that a run has: 2, or 0.25 for four runs on each GPU",
    ),
]
Cluster = Annotated[str | None, typer.Option(help="run on a Ray cluster: auto, or ray://HOST:PORT")]
Margin = Annotated[
    float | None,
    typer.Option(
        help="what a cheaper method may cost: a point, or a fifth of the best one's errors if that "
        "is less; of losses 2 % of the lowest; other units need one"
    ),
]
