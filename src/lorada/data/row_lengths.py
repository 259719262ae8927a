"""How many tokens rows have, and how many of them ``max_length`` cuts; in words for the user."""

from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from pydantic import ConfigDict


class Encoded(NamedTuple):
    """One row as it is encoded."""

    features: dict[str, Any] | None  # None if it has no token to learn
    truncated: bool  # whether it had to be cut
    length: int  # its tokens before that; of an encoder–decoder, those that the encoder reads
    answer_cut: bool = False  # whether a part of what is learned was cut


@dataclass
class EncodingLog:
    """What has happened to rows while they were encoded, by their indices."""

    cut: list[int] = field(default_factory=list)  # to their length, and still learned
    answers_cut: list[int] = field(default_factory=list)  # of those, in what is learned
    dropped: list[int] = field(default_factory=list)  # as the cut left nothing to learn
    empty: list[int] = field(default_factory=list)  # as there was nothing to learn
    lengths: list[int] = field(default_factory=list)  # tokens of each row before it was cut

    def add(self, index: int, encoded: Encoded) -> None:
        """Note a row that has been encoded: its length, and whether it was cut or lost."""
        self.lengths.append(encoded.length)
        if encoded.features is None:
            # If it was cut, a higher limit would have left something to learn; else none would.
            if encoded.truncated:
                self.dropped.append(index)
            else:
                self.empty.append(index)
            return
        if encoded.truncated:
            self.cut.append(index)
        if encoded.answer_cut:
            self.answers_cut.append(index)


@dataclass(frozen=True)
class RowLengths:
    """Tokens of some rows before any is cut, and how many of the rows are cut."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    rows: int
    shortest: int
    median: int
    longest: int
    max_length: int  # most tokens of a row
    target_length: int | None  # most tokens of a response, where it does not share max_length
    reads: int | None  # most tokens that the model reads; None if its config does not say
    cut: int  # rows that are cut and learned
    answers_cut: int  # of those, rows that lose a part of what is learned
    dropped: int  # rows of which the cut leaves nothing to learn
    empty: int  # rows that have nothing to learn

    @property
    def whole(self) -> int | None:
        """The ``max_length`` that takes every row whole, or as much of it as the model reads.

        None if no other number is better.
        """
        best = self.longest
        if self.reads is not None:
            best = min(best, self.reads)
        return best if best > self.max_length else None

    @property
    def losses(self) -> str:
        """What rows lose, in words; empty if they lose nothing."""
        limits = f"max_length={self.max_length}"
        if self.target_length is not None:
            limits += f" (the response to max_target_length={self.target_length})"
        inside = f", {self.answers_cut} of them in an answer" if self.answers_cut else ""
        parts = []
        if self.cut:
            parts.append(f"{_are(self.cut)} cut to {limits}{inside}")
        if self.dropped:
            parts.append(f"{_are(self.dropped)} left out, as {limits} leaves nothing to learn")
        if self.empty:
            parts.append(f"{_are(self.empty)} left out, as this tokenizer has no token for a text")
        return ", ".join(parts)

    @property
    def advice(self) -> str:
        """Which ``max_length`` would do, in words; empty if no row is too long."""
        if self.longest <= self.max_length:
            return ""
        longest = f"the longest has {self.longest:,} tokens"
        if self.reads is not None and self.longest > self.reads:
            longest += f" and the model reads {self.reads:,}"
        if self.whole is None:
            return longest
        does = "takes every row whole" if self.whole == self.longest else "cuts the least"
        return f"{longest}: max_length={self.whole} {does}"

    @property
    def summary(self) -> str:
        """What rows lose, and which ``max_length`` would do; empty if they lose nothing."""
        return "; ".join(filter(None, (self.losses, self.advice if self.losses else "")))

    @property
    def spread(self) -> str:
        """How long rows are, in words."""
        return f"{self.shortest:,} to {self.longest:,}, half of them {self.median:,} or less"


def _are(count: int) -> str:
    """A number of rows with its verb."""
    return f"{count} {'is' if count == 1 else 'are'}"


def lengths_of(
    log: EncodingLog, max_length: int, target_length: int | None, reads: int | None
) -> RowLengths:
    """The lengths of encoded rows; there must be one or more."""
    return RowLengths(
        rows=len(log.lengths),
        shortest=min(log.lengths),
        median=round(median(log.lengths)),
        longest=max(log.lengths),
        max_length=max_length,
        target_length=target_length,
        reads=reads,
        cut=len(log.cut),
        answers_cut=len(log.answers_cut),
        dropped=len(log.dropped),
        empty=len(log.empty),
    )
