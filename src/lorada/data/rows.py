"""What is asked of a row of any form, such as place and answer; and a share that is held out."""

import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lorada.support.row_sources import Row, files_of

MOST_NUMBERS = 5  # of rows that an error names


def place_of(path: str, counts: Sequence[int], index: int) -> str:
    """The file of a row and its number there, from 1; ``counts`` are the rows of each file."""
    for name, count in zip(files_of(path), counts, strict=False):
        if index < count:
            return f"{name} row {index + 1}"
        index -= count
    return f"{path} row {index + 1}"


def places_of(path: str, counts: Sequence[int], indices: Sequence[int]) -> str:
    """The files and numbers of some rows, such as ``rows.csv rows 3, 7``, for an error."""
    shown = indices[:MOST_NUMBERS]
    more = f" and {len(indices) - len(shown)} more" if indices[MOST_NUMBERS:] else ""
    if len(counts) > 1:
        return ", ".join(place_of(path, counts, index) for index in shown) + more
    several = "s" if indices[1:] else ""
    return f"{path} row{several} {', '.join(str(index + 1) for index in shown)}{more}"


def text_of(row: Row, name: str) -> str:
    """A field of a benchmark's row that must hold a text."""
    if not isinstance(row[name], str):
        raise ValueError(f"{name} is not a text: {row[name]!r}")
    return str(row[name])


def fingerprint(rows: list[Row]) -> str:
    """The sha256 of the rows' content, for ``result.json``."""
    text = "\n".join(json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def content_of(row: Row) -> str:
    """A row without its group as one text, the same from CSV and JSON; blanks count as one."""
    of_kind = {"label": str, "score": float, "answer": str}
    plain = {
        key: of_kind.get(key, _plain)(value)
        for key, value in row.items()
        if value is not None and key != "group"
    }
    return json.dumps(plain, sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def answer_of(row: Row) -> str:
    """The right answer to a row, for a model that answers with a text."""
    if "messages" in row:
        return str(row["messages"][-1].get("content") or "")  # a call of tools has none
    return str(row.get("eval_response", row["response"]))


SHARE = re.compile(r"(\d+(?:\.\d+)?) ?%")


def share_of(text: str | None) -> float | None:
    """The share that ``20%`` names, from 0 to 1; None for the name of a file."""
    found = SHARE.fullmatch(text or "")
    if found is None:
        return None
    share = float(found[1]) / 100
    if not 0 < share < 1:
        raise ValueError(f"{text} of the rows cannot be held out: give a share between 0% and 100%")
    return share


def drawn(rows: list[Row], share: float, seed: int) -> list[int]:
    """The indices of the rows that are held out, in order.

    Rows of one group stay together, and without groups those with equal content. Each class loses
    the same share, rounded so that the shares of all classes add up; a row that is the only one of
    its class is learned.
    """
    together: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        together[str(row["group"]) if "group" in row else content_of(row)].append(index)
    classes: dict[str, list[list[int]]] = defaultdict(list)
    for group in together.values():
        classes[str(rows[group[0]].get("label"))].append(group)
    chance, found, rest = random.Random(seed), list[int](), 0.0
    for name in sorted(classes):
        groups, before = classes[name], len(found)
        wanted = share * sum(map(len, groups)) + rest
        chance.shuffle(groups)
        for group in groups[1:]:  # the first is learned
            if len(found) - before + len(group) / 2 <= wanted:
                found += group
        rest = min(wanted - (len(found) - before), 1.0)
    if not found:
        raise ValueError(
            f"{100 * share:g}% of {len(rows)} rows holds out none: give more rows or a larger share"
        )
    return sorted(found)
