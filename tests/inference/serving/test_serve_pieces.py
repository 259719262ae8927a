"""Pieces of an answer: the same text however it is cut, and whole characters."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lorada.inference.answer_text import UNFINISHED, AnswerText

LETTERS = "ab é€👍\n.'" + UNFINISHED
END = "</s>"
EXAMPLES = 40


def byte_level() -> PreTrainedTokenizerFast:
    """Bytes, and tokens that begin or end within a character."""
    halves = (b" \xe2", b"\x82\xac", b"\xe2\x82", b"a\xf0\x9f", b"\x91\x8da", b"ab", b"\xa9\n")
    vocab = [END, *map(letters_of, [bytes([b]) for b in range(256)]), *map(letters_of, halves)]
    before = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made(bpe(vocab), before, decoders.ByteLevel())


def letters_of(some: bytes) -> str:
    """Bytes as a byte-level vocabulary writes them: those without a letter in Latin-1 from 256."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [b for b in range(256) if b not in shown]
    return "".join(chr(b) if b in shown else chr(256 + moved.index(b)) for b in some)


def byte_fallback() -> PreTrainedTokenizerFast:
    """SentencePiece: words with their blank, and bytes for characters that it does not know."""
    words = ["▁", "▁a", "a", "b", "é", ".", "'", "ab", "▁ab", "\n", UNFINISHED]
    vocab = [END, *words, *(f"<0x{byte:02X}>" for byte in range(256))]
    steps = [
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]  # fmt: skip
    return made(bpe(vocab, byte_fallback=True), BLANKS, decoders.Sequence(steps))


def cleaning() -> PreTrainedTokenizerFast:
    """One that takes back the blank before a full stop."""
    vocab = [END, "▁", "a", "b", ".", "'", "s", "▁b", "▁n't", "▁.", "é"]
    model = models.Unigram([(token, -1.0) for token in vocab], unk_id=0)
    steps = [decoders.Replace("▁", " "), decoders.Fuse()]
    return made(model, BLANKS, decoders.Sequence(steps), clean_up_tokenization_spaces=True)


BLANKS = pre_tokenizers.Metaspace(prepend_scheme="never")


def bpe(vocab: list[str], **options) -> models.BPE:
    return models.BPE({token: n for n, token in enumerate(vocab)}, [], **options)


def made(model, before, after, **options) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = before, after
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, **options)


TOKENIZERS = {
    "byte-level": byte_level(), "byte fallback": byte_fallback(), "cleaning": cleaning()
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", TOKENIZERS)


def streamed(name, ids, sizes, stops=(), kept=()):
    """The pieces of an answer whose tokens come so many at a time."""
    answer, found, at = AnswerText(TOKENIZERS[name], stops, kept), [], 0
    for size in [*sizes, *[1] * len(ids)]:
        at = min(at + size, len(ids))
        found.append(answer.take(ids[:at], done=at == len(ids)))
        if answer.stopped or at == len(ids):
            break
    assert answer.shown == "".join(found)
    return found


def expected(text, stops, kept):
    """The text until the first character with which a stop text is complete."""
    for end in range(1, len(text.rstrip(UNFINISHED)) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)]
        if text[:end].endswith(kept):
            return text[:end]
    return text


@st.composite
def answers(draw, name):
    """Tokens, of which most are characters, and how many of them come at a time."""
    tokenizer = TOKENIZERS[name]
    any_token = st.integers(0, len(tokenizer) - 1)
    of_text = st.text(LETTERS, max_size=4).map(
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    )
    one = any_token.map(lambda token: [token])
    parts = draw(st.lists(st.one_of(of_text, of_text, one), min_size=1, max_size=8))
    ids = [token for part in parts for token in part] or [0]
    sizes = [draw(st.lists(st.integers(1, 4), max_size=len(ids))) for _ in range(2)]
    return ids, *sizes


some_stops = st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=3).map(tuple)


@EVERY
@given(data=st.data(), stops=some_stops, kept=some_stops)
@settings(max_examples=EXAMPLES, deadline=None)
def test_streamed_and_whole_answers_are_one_text_that_ends_at_the_first_stop(
    name, data, stops, kept
):
    ids, *sizes = data.draw(answers(name))
    text = expected(TOKENIZERS[name].decode(ids, skip_special_tokens=True), stops, kept)
    for some in (*sizes, [len(ids)]):
        assert "".join(streamed(name, ids, some, stops, kept)) == text


@pytest.mark.parametrize("name", ["byte-level", "byte fallback"])
def test_half_a_character_is_not_shown(name):
    ids = TOKENIZERS[name]("€", add_special_tokens=False)["input_ids"]
    assert streamed(name, ids, [1, 1]) == ["", "", "€"]
