"""``Task``: where its rows come from, what a model is asked, and how its answers are scored.

A protocol turns a row of the data set into a row of one of seven forms (``Form``), and scores
what a model answers. A task may have several protocols.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from lorada.support.row_sources import Form, Row

Metrics = dict[str, Any]  # numbers, None, and a few words
Score = Callable[[list[Any], list[Row]], Metrics]
Kind = Literal["decoder", "encoder", "encoder_decoder"]
ANY_KIND: tuple[Kind, ...] = ("decoder", "encoder", "encoder_decoder")


@dataclass(frozen=True)
class Source:
    """One split of a data set: on the hub, or in a local folder.

    Attributes:
        folder: its folder in a local data folder, which has ``{split}.jsonl.gz`` or ``.jsonl``.
        split: its name in that folder and on the hub.
        hub: id of the data set on the hub, or addresses of JSON files separated by blanks; empty
            if it is only in local folders.
        config: name of its configuration on the hub.
    """

    folder: str
    split: str
    hub: str
    config: str | None = None


@dataclass(frozen=True)
class Protocol:
    """One way to ask a model a task.

    Attributes:
        form: the form of the rows that ``convert`` makes.
        kinds: the kinds of model it is for.
        convert: row of the data set → row of the form. If evaluation asks or expects something else
            than training, the row has it in ``eval_prompt`` and ``eval_response``.
        score: (the model's answer to each row, rows of the form) → metrics, the main one first.
        labels: class names by index; empty if they are taken from the rows.
        generation: settings of ``generate``, such as ``num_beams``.
        loss_on: tokens that count in the loss: ``response`` or ``all``.
        joint: whether prompt and response are tokenised as one text.
        target_length: most tokens of a response; None if prompt and response share ``max_length``.
        languages: source and target language, as the tokenizer of a multilingual model names them.
        convert_test: ``convert`` for rows to score; None for the same.
        lengths: lengths in tokens of the windows that slide over the joined texts; empty if each
            row is scored alone.
        stride: tokens from the start of one window to the start of the next.
        rows: how many rows are scored if the recipe does not say; None for all.
    """

    form: Form
    kinds: tuple[Kind, ...]
    convert: Callable[[Row], Row]
    score: Score
    labels: tuple[str, ...] = ()
    generation: dict[str, Any] = field(default_factory=dict)
    loss_on: Literal["response", "all"] = "response"
    joint: bool = False
    target_length: int | None = None
    languages: tuple[str, str] | None = None
    convert_test: Callable[[Row], Row] | None = None
    lengths: tuple[int, ...] = ()
    stride: int = 256
    rows: int | None = None


@dataclass(frozen=True)
class Task:
    """One task: an entry of ``TASKS``.

    Attributes:
        summary: one line for ``lorada tasks``.
        benchmark: the group of tasks it belongs to.
        protocols: name → protocol; the first that suits a model's kind is its default. The task
            ``jsonl`` has one for each form, and the form of its rows decides.
        train: name → training rows; the first is the default. Empty for the user's own files.
        test: name → rows to score; the name is empty if there is only one set.
    """

    summary: str
    benchmark: str
    protocols: dict[str, Protocol]
    train: dict[str, Source] = field(default_factory=dict)
    test: dict[str, Source] = field(default_factory=dict)

    def protocol(self, name: str | None, kind: Kind) -> Protocol:
        """The protocol for a kind of model: that called ``name``, or the first that suits if None.

        Raises:
            ValueError: for an unknown name, or if no protocol or not this one suits the kind.
        """
        if name is not None and name not in self.protocols:
            raise ValueError(f"protocol={name!r} is not one of {', '.join(self.protocols)}")
        protocols = [*self.protocols.values()] if name is None else [self.protocols[name]]
        for protocol in protocols:
            if kind in protocol.kinds:
                return protocol
        by_protocol = f" by protocol {name!r}" if name else ""
        needed = " or ".join(protocols[0].kinds)
        raise ValueError(
            f"this task{by_protocol} needs a model of kind {needed}, and this one is of kind {kind}"
        )
