"""``AnswerText``: the text of an answer while its tokens come, and the bytes of each token."""

import re

from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # bytes that are no whole character decode to this
BYTE = re.compile("<0x([0-9A-F]{2})>")  # a token of one byte, in SentencePiece's vocabularies


class AnswerText:
    """Decodes the tokens of one answer, which may end at a stop text.

    Attributes:
        shown: the text so far.
        stopped: whether a stop text has ended the answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stops: tuple[str, ...] = (),
        kept: tuple[str, ...] = (),
    ) -> None:
        """Begin with nothing.

        Args:
            tokenizer: that of the model.
            stops: texts that end the answer and are not part of it.
            kept: texts that end the answer and stay in it.
        """
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

    def spelled(self, ids: list[int]) -> list[bytes]:
        """What each token wrote of the whole answer, in UTF-8; none for tokens behind a stop text.

        A special token has no bytes, and of the last token a stop text may cut some.
        """
        found: list[bytes] = []
        before = ""
        for count in range(1, len(ids) + 1):
            text = self.whole(ids[:count])
            if count < len(ids) and text != self.settled(ids[:count]):
                continue  # it ends within a character
            own = [self._own_bytes(token) for token in ids[len(found) : count]]
            new = text[len(before) :]
            # The text has others in place of bytes that are no text. Else it is right: a tokenizer
            # may leave out a blank, as before the first word.
            if UNFINISHED not in new and b"".join(own) != new.encode():
                own = [*[b""] * (len(own) - 1), new.encode()]
            found, before = found + own, text
        if not self.stopped:
            return found
        left = len(self.shown.replace(UNFINISHED, "?").encode())  # one byte for what is no text
        cut: list[bytes] = []
        while left > 0:
            cut.append(found[len(cut)][:left])
            left -= len(cut[-1])
        return cut

    def _own_bytes(self, token: int) -> bytes:
        """The bytes of one token, which may be a part of a character."""
        text = self.whole([token])
        piece: str | None = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None or (not text and self._tokenizer.decode([token])):
            return b""  # a special token, or none at all
        if (byte := BYTE.fullmatch(piece)) and text != piece:
            return bytes.fromhex(byte[1])
        if all(letter in LETTERS for letter in piece):
            found = bytes(LETTERS[letter] for letter in piece)
            if found.decode(errors="replace") == text:
                return found
        return piece.replace("▁", " ").encode()

    def _is_byte(self, token: int) -> bool:
        """Whether a token is one byte, or no text, as which it may lie among bytes."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        return not self.whole([token]) or BYTE.fullmatch(piece) is not None


def _letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for.

    Bytes that are visible in Latin-1 stand for themselves, the others for letters from 256 on.
    """
    others = iter(range(256, 512))
    letters = set(ByteLevel.alphabet())
    return {chr(b) if chr(b) in letters else chr(next(others)): b for b in range(256)}


LETTERS = _letters()
