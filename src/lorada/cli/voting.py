"""The vote of several runs behind ``lorada predict RUN,RUN,RUN``."""

from pathlib import Path
from typing import Any

from lorada.cli.shared import load_with_spinner


def folders_of(runs: Path) -> list[Path]:
    """The folders in ``RUN,RUN,RUN``; a folder may have a comma in its own name.

    Raises:
        ValueError: for a folder that is named twice, as its vote would count twice.
    """
    if runs.exists():
        return [runs]
    folders = [Path(name) for name in str(runs).split(",") if name]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            raise ValueError(f"{folder} is named twice: a vote takes each run once")
    return folders or [runs]


def voted_answers(
    folders: list[Path],
    texts: list[str],
    data: str | None,
    columns: Any,
    max_new_tokens: int | None,
    output: Path | None,
    *,
    overwrite: bool,
    remote: bool,
    quiet: bool,
) -> tuple[list[Any], list[Any]]:
    """The rows as they were read, and one answer of several runs to each; both are written too.

    They are written only where there is an ``output``, at the end: a vote that was stopped begins
    again.
    """
    from lorada.data.files.read_rows import read_rows
    from lorada.data.rows.own_rows import rows_to_answer
    from lorada.inference.generate import with_limit
    from lorada.inference.predict import checked_output, write_answers
    from lorada.inference.vote import predict_together
    from lorada.runs.folder import finished_run

    input_rows = read_rows(data) if data is not None else [{"text": text} for text in texts]

    def load(folder: Path) -> Any:
        model = finished_run(folder).model
        run = load_with_spinner(folder, model, remote=remote, quiet=quiet)
        return with_limit(run, max_new_tokens)

    def rows_for(run: Any) -> Any:
        known = run.recipe.columns if data is not None else None
        path = data or "--text"
        rows = rows_to_answer(
            input_rows, path, run.form, run.labels, columns, known, pairs=run.pairs
        )
        if output is not None:
            checked_output(output, rows, overwrite=overwrite)
        return rows

    rows, answers = predict_together(folders, load, rows_for)
    if output is not None:
        place = checked_output(output, rows, overwrite=overwrite)
        write_answers(place, input_rows, answers, overwrite=overwrite)
    return input_rows, answers
