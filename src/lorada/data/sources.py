"""Reads the rows of a benchmark from a local folder or from the hub."""

import os
from pathlib import Path

from lorada.data.row_files import from_hub, read_rows
from lorada.data.task import Source
from lorada.support.row_sources import Row

DATA_VARIABLE = "LORADA_DATA"


def data_folder(chosen: str | None) -> Path | None:
    """The chosen local data folder, or the one in ``LORADA_DATA``; None for the hub."""
    name = chosen or os.environ.get(DATA_VARIABLE)
    if not name:
        return None
    if not Path(name).is_dir():
        raise FileNotFoundError(f"no data folder at {name}: correct --data-dir or {DATA_VARIABLE}")
    return Path(name)


def read_source(source: Source, folder: Path | None) -> list[Row]:
    """All rows of a split, in order, from a local data folder; from the hub if that is None."""
    return _from_hub(source) if folder is None else _from_folder(source, folder)


def _from_folder(source: Source, folder: Path) -> list[Row]:
    stem = folder / source.folder / source.split
    found = [p for end in (".jsonl.gz", ".jsonl") if (p := Path(f"{stem}{end}")).is_file()]
    if not found:
        place = stem.parent
        splits = sorted({p.name.split(".")[0] for p in place.glob("*.jsonl*")})
        has = f"{place} has {', '.join(splits)}" if splits else f"there is no {place}"
        raise FileNotFoundError(f"no data at {stem}.jsonl.gz: {has}")
    return read_rows(found[0])


def _from_hub(source: Source) -> list[Row]:
    if not source.hub:
        raise ValueError(
            f"{source.folder}/{source.split} is not on the hub: pass --data-dir DIR or set "
            f"{DATA_VARIABLE} to a folder that has it"
        )
    what = f"cannot load {source.hub} from the hub"
    remedy = (
        f"pass --data-dir DIR or set {DATA_VARIABLE} to a folder with {source.folder}/"
        f"{source.split}.jsonl.gz, or take your own rows with --data FILE"
    )
    if not source.hub.startswith("https://"):
        return list(from_hub(what, remedy, source.hub, source.config, split=source.split))
    # One file at a time, because the files have different fields besides the text.
    files = (
        from_hub(what, remedy, "json", data_files=address, split="train")
        for address in source.hub.split()
    )
    return [row for loaded in files for row in loaded]
