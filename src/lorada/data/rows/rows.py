"""``Rows``: rows of one form, with the protocol by which a model is asked them and their places."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

from lorada.data.chat_template import TurnsRefused
from lorada.data.files.read_rows import place_of
from lorada.data.rows.row_content import class_names_of
from lorada.data.task import Kind, Protocol
from lorada.support.row_sources import NAMED, Form, Row


@dataclass(frozen=True)
class Rows:
    """Rows of one form, and the protocol by which a model is asked them.

    Attributes:
        rows: the rows.
        form: their form.
        labels: class names by index, for rows with labels.
        path: the files or split that they are from.
        protocol: the protocol.
        indices: their indices in the file; None for all its rows, in order.
        counts: how many rows each of several files has; ``indices`` run on from one to the next.
        read: the rows with all their columns, as the files have them; None for those of a
            benchmark.
    """

    rows: list[Row]
    form: Form
    labels: tuple[str, ...]
    path: str
    protocol: Protocol
    indices: list[int] | None = None
    counts: tuple[int, ...] = ()
    read: list[Row] | None = None

    def number(self, index: int) -> int:
        """The number of a row in its file, counted from 1."""
        return 1 + (index if self.indices is None else self.indices[index])

    def as_read(self, index: int) -> Row:
        """A row with all its columns, as its file has it; one of a benchmark as it is."""
        return self.rows[index] if self.read is None else self.read[index]

    def place(self, index: int) -> str:
        """The file of a row and its number there, as errors name it."""
        return place_of(self.path, self.counts, self.number(index) - 1)

    @property
    def classes(self) -> dict[str, int]:
        """How many rows each class or label has, in the order of ``labels``; empty for others."""
        if self.form not in NAMED:
            return {}
        counts: Counter[str] = Counter()
        for row in self.rows:
            counts.update(class_names_of(row))
        return {label: counts[label] for label in self.labels}

    @contextmanager
    def placing(self, index: int) -> Iterator[None]:
        """Add the row's place to an error that a chat template raises in a ``with`` block."""
        try:
            yield
        except TurnsRefused as error:  # which knows only the turns
            raise ValueError(f"{self.place(index)}: {error}") from error

    def part(self, indices: Iterable[int]) -> "Rows":
        """The rows with these indices, in this order."""
        indices = list(indices)
        rows = [self.rows[index] for index in indices]
        read = None if self.read is None else [self.read[index] for index in indices]
        # Places are those in the file, of a part of a part too.
        indices_in_file = [self.number(index) - 1 for index in indices]
        return replace(self, rows=rows, indices=indices_in_file, read=read)

    def by_number(self) -> "Rows":
        """The rows in the order of their numbers, as predictions are kept."""
        return self.part(sorted(range(len(self.rows)), key=self.number))

    def split(self, indices: Iterable[int]) -> tuple["Rows", "Rows"]:
        """Split rows in two: those without some indices, and those with them, both in order."""
        drawn = set(indices)
        others = [index for index in range(len(self.rows)) if index not in drawn]
        return self.part(others), self.part(sorted(drawn))

    def sample(self, count: int | None) -> "Rows":
        """A random part of so many rows, the same for every seed; None for all rows."""
        if count is None or count >= len(self.rows):
            return self
        # A seed of its own: runs of several seeds are scored on the same rows.
        return self.part(random.Random(0).sample(range(len(self.rows)), count))

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the rows' content, by which it is seen later whether they are the same."""
        # Sorted, since the order of an object's keys says nothing.
        lines = (json.dumps(row, sort_keys=True, ensure_ascii=False) for row in self.rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def responses(self) -> list[str]:
        """The texts that a model learns to write: responses, and the assistant's turns of chats."""
        if self.form == "prompt":
            return [row["response"] for row in self.rows]
        texts = []
        for row in self.rows:
            for turn in row.get("messages", ()):
                if turn["role"] == "assistant" and isinstance(turn["content"], str):
                    texts.append(turn["content"])  # a turn that only calls tools has none
        return texts


def refuse_empty_prompts(rows: Rows) -> None:
    """Refuse prompts that no decoder could continue."""
    for index, row in enumerate(rows.rows):
        if not row["prompt"]:
            raise ValueError(
                f"{rows.place(index)} has an empty prompt, and there is nothing to continue: leave "
                "such rows out of the file"
            )


def refuse_kind(rows: Rows, kind: Kind) -> None:
    """Refuse rows for a kind of model that their protocol is not for.

    An encoder–decoder would read the answers of chats, choices and plain texts in its input.
    """
    if kind not in rows.protocol.kinds:
        fields = "text and label" if kind == "encoder" else "prompt and response"
        raise ValueError(
            f"{rows.path} has {rows.form} rows, which are not for an {kind.replace('_', '–')}: "
            f"take rows with {fields}, or a decoder"
        )
