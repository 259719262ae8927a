"""The seven forms of rows, and the names of the files and data sets that they come from."""

import os
import re
from pathlib import Path
from typing import Any, Literal

Row = dict[str, Any]
Form = Literal["messages", "choice", "prompt", "label", "labels", "score", "text"]

BUILTIN = "builtin:"
CODE = ".py:"  # in the name of a function in a file
TEXTS = ".jsonl", ".json", ".csv", ".tsv", ".txt"  # endings; each may have .gz behind it
PARQUET = ".parquet"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB = "owner/name, owner/name:config or owner/name:config@split"
# Forms that a model answers with a head, not with text.
HEADED: tuple[Form, ...] = ("label", "labels", "score")
# Forms whose answers are among the names that a head has for its outputs: one, or several.
NAMED: tuple[Form, ...] = ("label", "labels")


def resolve(path: str | Path) -> Path:
    """The path of a file; ``builtin:NAME`` is a file that ships with the package."""
    if not str(path).startswith(BUILTIN):
        return Path(path)
    name = Path(str(path).removeprefix(BUILTIN)).name
    return Path(__file__).parents[1] / "recipes" / "rows" / name


def files_of(path: str | Path) -> list[str]:
    """The files or data sets of the hub in ``a.jsonl,b.jsonl``; a file may have a comma itself."""
    text = str(path)
    if resolve(text).exists():
        return [text]
    return [name.strip() for name in text.split(",")]


def absolute_files(path: str) -> str:
    """The same files by their absolute paths; what is no file or folder here stays as it is."""
    absolute_names = []
    for name in files_of(path):
        absolute_names.append(os.path.abspath(name) if Path(name).exists() else name)
    return ",".join(absolute_names)


def file_names(path: str) -> str:
    """The names of files without their folders."""
    return ", ".join(Path(name).name for name in files_of(path))


def hub_source(path: str | Path) -> tuple[str, str | None, str | None] | None:
    """The name, configuration and split of a data set of the hub; None if it is no such name.

    A file that is there, or a name with an ending of a file, is a file.
    """
    text = str(path)
    is_file = Path(text).is_file() or ending_of(text) in (*TEXTS, PARQUET)
    if is_file or text.startswith(BUILTIN):
        return None
    before_split, _, split = text.partition("@")
    name, _, config = before_split.partition(":")
    # A local folder of a data set may have any name, and a configuration and a split too.
    is_folder = bool(name) and Path(name).is_dir()
    if not is_folder and not HUB_NAME.fullmatch(name):
        return None
    return name, config or None, split or None


def ending_of(path: str | Path) -> str:
    """The ending of a file's name in small letters, without a ``.gz`` behind it."""
    return Path(str(path).lower().removesuffix(".gz")).suffix
