"""``AnswerText``: the text of an answer's tokens while they come, and the bytes of one token."""

import re

from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # bytes that are no whole character decode to this
BYTE = re.compile("<0x([0-9A-F]{2})>")  # a token of one byte, in SentencePiece's vocabularies


class AnswerText:
    """Decodes the tokens of one answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        ids = tokenizer("a . b", add_special_tokens=False)["input_ids"]
        plain = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        self._takes_back_blanks = plain != tokenizer.decode(ids)

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

    def own_bytes(self, token: int) -> bytes:
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
