"""``AnswerText``: the text of an answer while its tokens come."""

import re

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # bytes that are no whole character decode to this
BYTE = re.compile("<0x([0-9A-F]{2})>")  # a token of one byte, in SentencePiece's vocabularies


class AnswerText:
    """Decodes the tokens of one answer, which may end at a stop text.

    Texts in ``stops`` end the answer and are no part of it; those in ``kept`` stay in it. The text
    so far is ``shown``, and ``stopped`` says whether such a text has ended it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stops: tuple[str, ...] = (),
        kept: tuple[str, ...] = (),
    ) -> None:
        self._tokenizer, self._stops, self._kept = tokenizer, stops, kept
        self.shown, self.stopped = "", False
        ids = tokenizer("a . b", add_special_tokens=False)["input_ids"]
        plain = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        self._takes_back_blanks = plain != tokenizer.decode(ids)

    def take(self, ids: list[int], *, done: bool) -> str:
        """What is new in the text of all tokens so far; ``done`` if no more will come."""
        text = self.whole(ids) if done else self.settled(ids)
        ended = self._until_stop(text.rstrip(UNFINISHED))
        if ended is not None:
            text, self.stopped = ended, True
        elif not done:
            text = self._before_stop(text)
        new = text[len(self.shown) :] if text.startswith(self.shown) else ""
        self.shown += new
        return new

    def _until_stop(self, text: str) -> str | None:
        """The text until the stop text that is complete first; None if there is none."""
        # Where each is complete, and where the answer then ends.
        found = [(text.index(s) + len(s), text.index(s)) for s in self._stops if s in text]
        found += [(text.index(s) + len(s),) * 2 for s in self._kept if s in text]
        return text[: min(found)[1]] if found else None

    def _before_stop(self, text: str) -> str:
        """The text without what may be the beginning of a stop text."""
        held = 0
        for stop in self._stops:
            sizes = range(min(len(stop) - 1, len(text)), 0, -1)
            held = max(held, next((size for size in sizes if text.endswith(stop[:size])), 0))
        return text[: len(text) - held]

    def whole(self, ids: list[int]) -> str:
        """The text of some tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def settled(self, ids: list[int]) -> str:
        """The beginning of the text that stays, whatever tokens follow.

        The last character may be half-written. Tokens of one byte each that follow each other are
        decoded together, and none of them is text if one of them is not. And some tokenizers take
        back the blank before a full stop and the like.
        """
        kept = len(ids)
        while kept and self._is_byte(ids[kept - 1]):
            kept -= 1
        text = self.whole(ids[:kept])
        if self._takes_back_blanks:
            text = text[: text.rfind(" ") + 1].rstrip(" ")
        return text.rstrip(UNFINISHED)

    def _is_byte(self, token: int) -> bool:
        """Whether a token is one byte, or no text, as which it may lie among bytes."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        return not self.whole([token]) or BYTE.fullmatch(piece) is not None
