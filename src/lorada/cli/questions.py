"""What ``lorada predict`` asks: texts or rows of a file, of one run or for the vote of several."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorada.cli.shared import load_with_spinner


@dataclass(frozen=True)
class Questions:
    """The texts or the rows of a file that runs are to answer.

    Attributes:
        texts: of the command line; empty with ``data``.
        data: a file or a hub id; None for texts.
        columns: the user's names of fields; None for those of the recipe.
    """

    texts: list[str]
    data: str | None
    columns: Any

    def read(self) -> list[Any]:
        """Read the rows as they are given; a text is a row with nothing else.

        Raises:
            ValueError: for a file that is no table of rows.
        """
        from lorada.data.files.read_rows import read_rows

        if self.data is not None:
            return read_rows(self.data)
        return [{"text": text} for text in self.texts]

    def rows_for(self, run: Any, input_rows: list[Any]) -> Any:
        """The rows that were read as a run can answer them, in the form that it has learned."""
        from lorada.data.rows.own_rows import rows_to_answer

        # The recipe names the columns of files; a text of the command line has no others.
        recipe_columns = run.recipe.columns if self.data is not None else None
        return rows_to_answer(
            input_rows,
            self.data or "--text",
            run.form,
            run.labels,
            self.columns,
            recipe_columns,
            pairs=run.pairs,
        )


def folders_of(runs: Path) -> list[Path]:
    """The folders in ``RUN,RUN,RUN``; a folder may have a comma in its own name.

    Raises:
        ValueError: for a folder that is named twice, as its vote would count twice.
    """
    if runs.exists():  # as one folder, so a comma is part of its name
        return [runs]
    folders = [Path(name) for name in str(runs).split(",") if name]
    for index, folder in enumerate(folders):
        if folder in folders[:index]:
            raise ValueError(f"{folder} is named twice: a vote takes each run once")
    return folders or [runs]


def load_to_answer(run: Path, max_new_tokens: int | None, *, remote: bool, quiet: bool) -> Any:
    """Load a finished run with a spinner, and set the limit of its answers if one is given.

    ``remote`` allows code of the model's repository to run.
    """
    from lorada.runs.folder import finished_run

    loaded = load_with_spinner(run, finished_run(run).model, remote=remote, quiet=quiet)
    from lorada.inference.generate import with_limit

    return with_limit(loaded, max_new_tokens)


def vote_on(
    questions: Questions,
    folders: list[Path],
    max_new_tokens: int | None,
    output: Path | None,
    *,
    overwrite: bool,
    remote: bool,
    quiet: bool,
) -> tuple[list[Any], list[Any]]:
    """Let several runs answer the same rows, and write one answer of theirs to each.

    Answers are written only where there is an ``output``, at the end: a vote that was stopped
    begins again.

    Args:
        questions: what is asked.
        folders: of the runs, two or more. One is in memory at a time.
        max_new_tokens: of an answer; None for the limit of each run.
        output: file of the answers; None for none.
        overwrite: whether answers that are there are deleted.
        remote: whether code of a model's repository may run.
        quiet: whether no spinner is shown.

    Returns:
        The rows as they were read, and the answer to each.

    Raises:
        ValueError: for runs that cannot vote together, rows that one of them cannot answer, and an
            output that is there and is not to be deleted.
    """
    from lorada.inference.predict import checked_output, write_answers
    from lorada.inference.vote import predict_together

    input_rows = questions.read()

    def load(folder: Path) -> Any:
        return load_to_answer(folder, max_new_tokens, remote=remote, quiet=quiet)

    def rows_for(run: Any) -> Any:
        rows = questions.rows_for(run, input_rows)
        if output is not None:  # refused before the first run answers, which may take hours
            checked_output(output, rows, overwrite=overwrite)
        return rows

    rows, answers = predict_together(folders, load, rows_for)
    if output is not None:
        # It was checked hours ago: meanwhile somebody else may have written there.
        answers_path = checked_output(output, rows, overwrite=overwrite)
        write_answers(answers_path, input_rows, answers, overwrite=overwrite)
    return input_rows, answers
