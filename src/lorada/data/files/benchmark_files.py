"""Rows of the benchmarks' data sets: from a local data folder, or from the hub."""

import os
from pathlib import Path

from lorada.data.files.hub_rows import load_from_hub
from lorada.data.files.read_rows import read_rows
from lorada.data.task import Source
from lorada.support.row_sources import Row

DATA_VARIABLE = "LORADA_DATA"


def data_folder(data_dir: str | None) -> Path | None:
    """The local data folder ``data_dir``, or the one in ``LORADA_DATA``; None for the hub.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    name = data_dir or os.environ.get(DATA_VARIABLE)
    if not name:
        return None
    if not Path(name).is_dir():
        raise FileNotFoundError(f"no data folder at {name}: correct --data-dir or {DATA_VARIABLE}")
    return Path(name)


def read_source(source: Source, folder: Path | None) -> list[Row]:
    """All rows of a split, in order, from a local data folder; from the hub if that is None.

    Raises:
        FileNotFoundError: if the folder has no file of the split.
        ValueError: if the hub cannot be read, or a file is no table of rows.
    """
    if folder is None:
        return _from_hub(source)
    stem = folder / source.folder / source.split
    for path in (Path(f"{stem}.jsonl.gz"), Path(f"{stem}.jsonl")):
        if path.is_file():
            return read_rows(path)
    raise FileNotFoundError(f"no data at {stem}.jsonl.gz: correct --data-dir or {DATA_VARIABLE}")


def _from_hub(source: Source) -> list[Row]:
    """Read the rows of a benchmark's split from the hub, or from the files that its address names.

    A source that is not on the hub, or cannot be loaded, is refused with what to pass instead.
    """
    if not source.hub:
        raise ValueError(
            f"{source.folder}/{source.split} is not on the hub: pass --data-dir DIR or set "
            f"{DATA_VARIABLE} to a folder that has it"
        )
    problem = f"cannot load {source.hub} from the hub"
    remedy = (
        f"pass --data-dir DIR or set {DATA_VARIABLE} to a folder with {source.folder}/"
        f"{source.split}.jsonl.gz, or take your own rows with --data FILE"
    )
    if not source.hub.startswith("https://"):
        return list(load_from_hub(problem, remedy, source.hub, source.config, split=source.split))
    # One file at a time, because the files have different fields besides the text.
    rows: list[Row] = []
    for address in source.hub.split():
        rows += load_from_hub(problem, remedy, "json", data_files=address, split="train")
    return rows
