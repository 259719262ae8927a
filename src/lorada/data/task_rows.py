"""Finds the rows that a run learns from and is scored on: a user's file, or those of benchmarks.

Rows of a user's own decide by what answers are scored (``metric_of``) and how long they may be.
"""

import hashlib
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from textwrap import shorten
from typing import Any

from lorada.data.chat_template import TurnsRefused
from lorada.data.json_answers import mostly_json
from lorada.data.metrics import refuse_metric
from lorada.data.read_rows import (
    DATA,
    EVAL_DATA,
    OF_RUN,
    SHARED,
    RowsSetting,
    data_folder,
    drawn,
    place_of,
    read_files,
    read_source,
    refuse_missing,
    share_of,
)
from lorada.data.row_forms import convert_rows, convert_rows_to_answer
from lorada.data.row_matches import Columns
from lorada.data.task import Kind, Protocol, Source
from lorada.data.tasks import TASKS
from lorada.data.tool_calls import CALLS
from lorada.data.usual_responses import is_usual
from lorada.runs.recipe import JSONL, Recipe
from lorada.runs.result import RunResult
from lorada.support.in_words import counted
from lorada.support.metric_names import FREE, NAMES
from lorada.support.row_sources import HEADED, NAMED, Form, Row
from lorada.support.task_head import TaskHead, head_for

logger = logging.getLogger(__name__)

LEAST_ANSWER = 32  # tokens
WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")
MOST_COUNTS = 200  # letters, of the classes in a line about rows
MOST_WORDS = 5  # of a response that an answer can be expected to equal
# A word; in scripts that put no blanks between words (Thai, Chinese, Japanese), a letter.
ALONE = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{ALONE}]|[^\s{ALONE}]+")
OwnClasses = tuple[str, ...] | None  # the classes of a model's head, by index


def named_answers(row: Row) -> list[str]:
    """The class of a text, or its labels."""
    return [str(row["label"])] if "label" in row else list(row["labels"])


@dataclass(frozen=True)
class Rows:
    """Rows of one form, and the protocol by which a model is asked them."""

    rows: list[Row]
    form: Form
    labels: tuple[str, ...]  # class names by index, for rows with labels
    path: str  # the files or split they are from
    protocol: Protocol
    indices: list[int] | None = None  # in the file; None for all its rows, in order
    counts: tuple[int, ...] = ()  # how many rows each of several files has; indices run on
    # The rows with all their columns, as the files have them; None for those of a benchmark.
    read: list[Row] | None = None

    def number(self, index: int) -> int:
        """The number of a row in its file, counted from 1."""
        return 1 + (index if self.indices is None else self.indices[index])

    def as_read(self, index: int) -> Row:
        """A row with all its columns, as its file has it."""
        return self.rows[index] if self.read is None else self.read[index]

    def place(self, index: int) -> str:
        """The file of a row and its number there."""
        return place_of(self.path, self.counts, self.number(index) - 1)

    @property
    def classes(self) -> dict[str, int]:
        """How many rows each class or label has, in the order of ``labels``; empty for others."""
        if self.form not in NAMED:
            return {}
        counts = Counter(name for row in self.rows for name in named_answers(row))
        return {label: counts[label] for label in self.labels}

    @contextmanager
    def placing(self, index: int) -> Iterator[None]:
        """Say in the refusal of a chat which row it is, in a ``with`` block."""
        try:
            yield
        except TurnsRefused as error:
            raise ValueError(f"{self.place(index)}: {error}") from error

    def part(self, indices: Iterable[int]) -> "Rows":
        """The rows with these indices, in this order."""
        chosen = list(indices)
        in_file = [self.number(index) - 1 for index in chosen]
        read = None if self.read is None else [self.read[index] for index in chosen]
        rows = [self.rows[index] for index in chosen]
        return replace(self, rows=rows, indices=in_file, read=read)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the rows' content, for ``result.json``."""
        lines = (json.dumps(row, sort_keys=True, ensure_ascii=False) for row in self.rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def responses(self) -> list[str]:
        """The texts that a model learns to write: responses, and the assistant's turns of chats."""
        if self.form == "prompt":
            return [row["response"] for row in self.rows]
        turns = (turn for row in self.rows for turn in row.get("messages", ()))
        said = (turn["content"] for turn in turns if turn["role"] == "assistant")
        return [text for text in said if isinstance(text, str)]  # a call of tools has none


def head_of(rows: Rows) -> TaskHead | None:
    """The head that a model needs to learn these rows; None if it writes its answers.

    Raises:
        ValueError: if all rows have the same right answer, from which no head learns anything.
    """
    if rows.form == "label" and len(rows.labels) < 2:
        raise ValueError(
            f"{rows.path} has only the label {rows.labels[0]!r}: a classifier needs two or more"
        )
    if rows.form == "labels" and len({tuple(row["labels"]) for row in rows.rows}) < 2:
        same = ", ".join(rows.rows[0]["labels"]) or "none"
        raise ValueError(f"every row of {rows.path} has the same labels ({same}): nothing can be "
                         "learned from them")  # fmt: skip
    if rows.form == "score" and len({float(row["score"]) for row in rows.rows}) < 2:
        score = float(rows.rows[0]["score"])
        raise ValueError(
            f"{rows.path} has only the score {score:g}: nothing can be learned from it"
        )
    return head_for(rows.form, rows.labels)


def training_rows(
    recipe: Recipe, kind: Kind, own_classes: OwnClasses = None
) -> tuple[Rows, Rows | None]:
    """The rows to learn from, and those held out to be measured while training, if any."""
    _refuse_both_kinds(recipe)
    if recipe.task == JSONL:
        rows = load_rows(recipe.data, columns=recipe.columns)
    else:
        rows = _benchmark_rows(recipe, kind)
    refuse_kind(rows, kind)
    rows = replace(rows, labels=class_order(rows.labels, own_classes))
    share, held_out = share_of(recipe.eval_data), None
    if recipe.eval_data and share is None:  # only of a user's own files
        held_out = load_rows(
            recipe.eval_data, rows.form, rows.labels, before=recipe.columns, setting=EVAL_DATA
        )
        refuse_kind(held_out, kind)
        held_out = sampled(held_out, recipe.eval_rows)
    if recipe.dev_rows and held_out is not None:
        raise ValueError(
            f"dev_rows={recipe.dev_rows} and eval_data exclude each other: leave one out"
        )
    learned, drawn_out, dev = _divided(rows, recipe)
    head_of(learned)  # which refuses rows with nothing to tell apart
    _log_rows(learned, drawn_out, recipe)
    return learned, dev or drawn_out or held_out


def _divided(rows: Rows, recipe: Recipe) -> tuple[Rows, Rows | None, Rows | None]:
    """The rows to learn from, the share that is held out to be scored, and ``dev_rows``."""
    held_out = dev = None
    if (share := share_of(recipe.eval_data)) is not None:
        chosen = drawn(rows.rows, share, recipe.eval_seed)
        rows, held_out = _parts(rows, chosen)
        _refuse_unanswered(held_out)
        held_out = sampled(held_out, recipe.eval_rows)
    if recipe.dev_rows:
        if recipe.dev_rows >= len(rows.rows):
            raise ValueError(
                f"dev_rows={recipe.dev_rows} leaves none of {len(rows.rows)} rows to learn from: "
                "lower it"
            )
        chance = random.Random(recipe.dev_seed)  # the same for every seed of the training
        rows, dev = _parts(rows, chance.sample(range(len(rows.rows)), recipe.dev_rows))
    return sampled(rows, recipe.train_rows), held_out, dev


def rows_to_score(
    recipe: Recipe, result: RunResult, data: str | None, columns: Columns | None = None
) -> Rows:
    """The rows of files, or those that a run holds out; a share of its rows is drawn again.

    ``data`` are the files, None for the recipe's ``eval_data``; ``columns`` are the user's names of
    fields, None for those of the training.
    """
    labels = tuple(result.labels)
    if data is not None or share_of(recipe.eval_data) is None:
        files = data or recipe.eval_data
        setting = DATA if data is not None else OF_RUN
        rows = load_rows(files, result.form, labels, columns, recipe.columns, setting=setting)
        return sampled(rows, recipe.eval_rows)
    learned = load_rows(recipe.data, columns=recipe.columns, setting=SHARED)
    now, held_out, _ = _divided(learned, recipe)
    same_rows = result.data is not None and now.fingerprint == result.data.sha256
    if not same_rows or held_out is None:
        raise ValueError(
            f"{recipe.data} has other rows than at the training, so {recipe.eval_data} of them "
            "may have been learned: put the rows back, or pass --data FILE"
        )
    return replace(held_out, labels=labels)


def _log_rows(learned: Rows, held_out: Rows | None, recipe: Recipe) -> None:
    """Say how many rows are learned and held out, and how many each class has."""
    counts = ", ".join(f"{label}: {count:,}" for label, count in learned.classes.items())
    said = f" ({shorten(counts, MOST_COUNTS, placeholder=' …')})" if counts else ""
    if held_out is not None:
        seed = f"eval_data={recipe.eval_data}, eval_seed={recipe.eval_seed}"
        said += f", {len(held_out.rows):,} held out ({seed})"
    if said:
        logger.info("%s: %s to learn%s", learned.path, counted(len(learned.rows), "row"), said)


def _refuse_unanswered(rows: Rows) -> None:
    """Refuse a chat to score that does not end with a text or calls of the assistant."""
    for index, row in enumerate(rows.rows if rows.form == "messages" else ()):
        last = row["messages"][-1]
        says = last.get("content") is not None or last.get(CALLS)
        if last["role"] != "assistant" or not says:
            raise ValueError(
                f"{rows.place(index)}: a chat to score must end with a turn of the assistant: "
                "end it there, or leave it out"
            )


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


def _refuse_both_kinds(recipe: Recipe) -> None:
    """Refuse settings of benchmarks beside rows of one's own, and such rows beside benchmarks."""
    own = recipe.task == JSONL
    benchmarks = ("protocol", "train_on", "data_dir", "eval_lengths", "eval_windows")
    for name in benchmarks if own else ("data", "eval_data"):
        if (value := getattr(recipe, name)) is not None:
            why = "benchmarks" if own else f"rows of your own, and task={recipe.task} has others"
            raise ValueError(f"{name}={value} is for {why}: leave it out, or change --task")


def scored_rows(recipe: Recipe, form: Form, labels: tuple[str, ...], kind: Kind) -> dict[str, Rows]:
    """The rows that a run on benchmarks is scored on, by the name of their metrics."""
    folder = data_folder(recipe.data_dir)
    found = {}
    for name in recipe.tasks:
        task = TASKS[name]
        protocol = task.protocol(recipe.protocol, kind)
        for suffix, source in task.test.items():
            convert = protocol.convert_test or protocol.convert
            converted = _convert(read_source(source, folder), convert, source)
            rows = Rows(converted, form, labels, f"{source.folder}/{source.split}", protocol)
            found["_".join(filter(None, (name, suffix)))] = sampled(
                rows, recipe.eval_rows or protocol.rows
            )
    return found


def _benchmark_rows(recipe: Recipe, kind: Kind) -> Rows:
    folder = data_folder(recipe.data_dir)
    sources: dict[Source, Protocol] = {}
    for name in recipe.tasks:
        task = TASKS[name]
        protocol = task.protocol(recipe.protocol, kind)
        chosen = recipe.train_on or next(iter(task.train), "")
        if chosen not in task.train:
            known = ", ".join(task.train) or "nothing"
            raise ValueError(f"train_on={chosen!r}: {name} can learn from {known}")
        sources[task.train[chosen]] = protocol
    forms = {(p.form, p.labels, p.languages, p.loss_on, p.joint) for p in sources.values()}
    if len(forms) > 1:
        raise ValueError(
            f"task={recipe.task}: rows or losses of these tasks differ: train one at a time"
        )
    rows: list[Row] = []
    for source, protocol in sources.items():
        rows += _convert(read_source(source, folder), protocol.convert, source)
    path = ", ".join(f"{source.folder}/{source.split}" for source in sources)
    return Rows(rows, protocol.form, protocol.labels, path, protocol)


def _convert(rows: list[Row], convert: Callable[[Row], Row], source: Source) -> list[Row]:
    converted = []
    for number, row in enumerate(rows, start=1):
        where = f"{source.folder}/{source.split} row {number}"
        try:
            converted.append(convert(row))
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            lacks = f"no {error} in {', '.join(row)}" if isinstance(error, LookupError) else error
            raise ValueError(f"{where}: {lacks}") from error
    return converted


def class_order(labels: tuple[str, ...], own: OwnClasses) -> tuple[str, ...]:
    """The classes of rows in the order of a model's own head, if the head has them all."""
    if not labels or own is None:
        return labels
    spelled = {label.casefold(): label for label in labels}
    order = tuple(spelled.get(name.casefold(), name) for name in own)
    if set(labels) <= set(order) and len(set(order)) == len(own):
        return order
    indices = tuple(map(str, range(len(own))))
    if set(labels) <= set(indices):
        classes = ", ".join(f"{index} {name}" for index, name in enumerate(own))
        logger.warning("the labels are taken for indices of the model's classes: %s", classes)
        return indices
    return labels


def _sorted_classes(labels: set[str]) -> tuple[str, ...]:
    """Class names sorted as numbers if all are whole numbers, else as texts."""
    numbers = all(WHOLE_NUMBER.fullmatch(label) for label in labels)
    return tuple(sorted(labels, key=(lambda label: (int(label), label)) if numbers else None))


def _parts(rows: Rows, held_out: Iterable[int]) -> tuple[Rows, Rows]:
    """The rows that are left, and those with these indices, both in order."""
    chosen = set(held_out)
    left = (index for index in range(len(rows.rows)) if index not in chosen)
    return rows.part(left), rows.part(sorted(chosen))


def sampled(rows: Rows, count: int | None) -> Rows:
    """A random part of the rows, the same for every seed."""
    if count is None or count >= len(rows.rows):
        return rows
    return rows.part(random.Random(0).sample(range(len(rows.rows)), count))


def refuse_absent(
    recipe: Recipe, data: str | None, data_dir: str | None = None, setting: RowsSetting = DATA
) -> None:
    """Refuse rows of a user, or a folder of those of benchmarks, that are not there.

    ``setting`` is what names the user's rows.
    """
    if data is None and recipe.task != JSONL:
        data_folder(data_dir or recipe.data_dir)
    else:
        refuse_missing(data, setting)


def load_rows(
    path: str | None,
    trained: Form | None = None,
    labels: tuple[str, ...] = (),
    columns: Columns | None = None,
    before: Columns | None = None,
    *,
    setting: RowsSetting = DATA,
) -> Rows:
    """Read a user's rows: files, or data sets of the hub; ``setting`` is what names them.

    For rows to score, ``trained`` is the form of the training rows and ``labels`` their classes.
    ``columns`` are the user's names of fields, and ``before`` those of other rows, which these may
    lack.
    """
    files, path = read_files(path, setting), str(path)
    counts = tuple(len(rows) for rows in files)
    every = [row for rows in files for row in rows]
    rows, form = convert_rows(every, path, columns, before, counts)
    if trained is not None and form != trained and (form in HEADED or trained in HEADED):
        raise ValueError(f"{path} has {form} rows; this run has learned {trained} rows")
    rows, form = _as_learned(rows, form, trained or form, path)
    names = {name for row in rows for name in named_answers(row)} if form in NAMED else set()
    classes = _sorted_classes(names)
    if twice := [one for one in classes if f"{one}.0" in classes]:  # as from spreadsheets
        raise ValueError(f"{path} has the labels {twice[0]} and {twice[0]}.0: write both alike")
    if labels and not set(classes) <= set(labels):
        new = sorted(set(classes) - set(labels))[0]
        raise ValueError(f"{path} has the label {new!r}; training knew {', '.join(labels)}")
    protocol = TASKS[JSONL].protocols[form]
    # A function of the user's that scores texts gets these columns; other rows need no copy.
    read = every if form in FREE else None
    found = Rows(rows, form, labels or classes, path, protocol, counts=counts, read=read)
    if trained is not None:
        _refuse_unanswered(found)
    return found


def rows_to_answer(
    rows: list[Row],
    path: str,
    learned: Form,
    labels: tuple[str, ...] = (),
    columns: Columns | None = None,
    before: Columns | None = None,
    *,
    pairs: bool = False,
) -> Rows:
    """Rows for a run to answer, as they were read; right answers in them are left out.

    ``learned``, ``labels`` and ``before`` are of the training's rows; ``pairs`` says whether these
    were pairs of texts only.
    """
    rows, form = convert_rows_to_answer(rows, path, learned, labels, columns, before)
    for number, row in enumerate(rows if pairs else (), start=1):
        if not row.get("text_pair"):
            raise ValueError(
                f"{path} row {number} has no text_pair, and this run has learned pairs of texts: "
                "pass rows that have both, with --data FILE"
            )
    if form == "text":
        rows, form = [{"prompt": row["text"], "response": ""} for row in rows], "prompt"
    rows, form = _as_learned(rows, form, learned, path)
    return Rows(rows, form, labels, path, TASKS[JSONL].protocols[form])


def _as_learned(rows: list[Row], form: Form, learned: Form, path: str) -> tuple[list[Row], Form]:
    """The rows as chats, if they are prompts and a run has ``learned`` chats."""
    if learned == form or "messages" not in (learned, form):
        return rows, form
    if form != "prompt":
        logger.warning("%s has %s rows, and this run has learned %s rows: only one of the two goes "
                       "through the chat template", path, form, learned)  # fmt: skip
        return rows, form
    logger.info("%s has prompts, and this run has learned chats: each is a user's turn", path)
    names = (("user", "prompt"), ("assistant", "response"))
    turns = [[{"role": role, "content": row[name]} for role, name in names] for row in rows]
    return [{"messages": each} for each in turns], "messages"


def protocol_settings(
    recipe: Recipe, protocol: Protocol, most: int | None = None
) -> dict[str, Any]:
    """Settings of ``generate``: the protocol's, with the recipe's ``max_new_tokens`` over them.

    ``most`` is the most tokens of an answer if neither says it; None for 32.
    """
    asked = recipe.max_new_tokens
    own = {} if asked is None else {"max_new_tokens": asked}
    return {"max_new_tokens": most or LEAST_ANSWER, **protocol.generation, **own}


def metric_of(rows: Rows, recipe: Recipe) -> dict[str, str] | None:
    """The metric that answers are scored by: the recipe's, or the usual one for rows like these.

    Its ``name`` is one of ``NAMES`` or ``FILE.py:function``; the ``reason`` is empty unless rows
    have decided it. None for a benchmark, which has its own.
    """
    asked, form = recipe.metric, rows.form
    if recipe.task != JSONL:
        if asked is None:
            return None
        raise ValueError(
            f"metric={asked} is for rows of your own: leave it out with task={recipe.task}"
        )
    if asked is not None:
        refuse_metric(asked, form)
        return {"name": asked, "reason": ""}
    if form not in FREE:
        return {"name": NAMES[form][0], "reason": ""}
    responses = rows.responses
    if mostly_json(responses):
        reason = "the responses of the training rows are objects or lists of JSON"
        return {"name": "json_match", "reason": reason}
    long = sum(len(WORD.findall(text)) > MOST_WORDS for text in responses)
    reason = (
        f"{long:,} of {len(responses):,} responses of the training rows are longer than five words"
    )
    name = "loss" if is_usual(long, len(responses)) else "exact_match"
    return {"name": name, "reason": reason}
