"""Makes rows fit ``max_length``: what is read loses its middle, so that an answer stays whole.

A question stands at the beginning or at the end of what is read, before or behind a passage, so
both ends stay. Of a chat, the longest texts that are read lose their middle.
"""

from transformers import PreTrainedTokenizerBase

from lorada.data.chats import ASSISTANT, LossOn, chat_tokens
from lorada.support.row_sources import Row

# Tokens; a text of a chat that has no more, or no more than this share of the length, is never cut.
LEAST_TEXT, LEAST_SHARE = 64, 0.25
SPARE = 2  # tokens more than are too many: texts that are joined may take other tokens


def without_middle(ids: list[int], max_length: int) -> list[int]:
    """The token ids, of which the middle is left out if there are more than ``max_length``."""
    if len(ids) <= max_length:
        return ids
    begin = max_length // 2
    end = max_length - begin
    return ids[:begin] + ids[len(ids) - end :]


def prompt_beside(prompt: list[int], response: list[int], max_length: int) -> list[int]:
    """A prompt that leaves room for its response, but keeps half of ``max_length`` for itself.

    So a response loses its end only where it is longer than the other half.
    """
    return without_middle(prompt, max(max_length - len(response), max_length // 2))


def chat_within(
    row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int, *, loss_on: LossOn = "response"
) -> tuple[list[int], list[bool]]:
    """The token ids of a chat whose longest read texts have lost their middle, and which count.

    A chat that is still too long without it, as its answers or many short turns fill it, is
    returned with its texts as short as they may be.
    """
    turns = row["messages"]
    texts = _texts_that_are_read(turns, loss_on)
    ids, learned = chat_tokens(row, tokenizer, loss_on=loss_on)
    excess = len(ids) - max_length
    if excess <= 0 or not texts:
        return ids, learned
    encoded = tokenizer([*texts.values()], add_special_tokens=False, verbose=False)["input_ids"]
    lengths = dict(zip(texts, map(len, encoded), strict=True))
    least = min(LEAST_TEXT, int(LEAST_SHARE * max_length))
    level = least + 1
    # Texts are cut by letters, so how many tokens that saves is only known once they are encoded.
    while len(ids) > max_length and level > least:
        level = max(least, _level([*lengths.values()], excess))
        shorter_turns = []
        for index, turn in enumerate(turns):
            if index in texts:
                share = level / max(1, lengths[index])
                turn = {**turn, "content": _shorten_text(texts[index], share)}
            shorter_turns.append(turn)
        ids, learned = chat_tokens({**row, "messages": shorter_turns}, tokenizer, loss_on=loss_on)
        excess += len(ids) - max_length + SPARE
    return ids, learned


def _texts_that_are_read(turns: list[Row], loss_on: LossOn) -> dict[int, str]:
    """The texts that a model reads and does not learn to write, by the index of their turn."""
    texts = {}
    for index, turn in enumerate(turns):
        if _is_read(index, turns, loss_on):
            texts[index] = turn["content"]
    return texts


def _is_read(index: int, turns: list[Row], loss_on: LossOn) -> bool:
    """Whether a turn is a text that a model reads and does not learn to write."""
    turn = turns[index]
    if not isinstance(turn.get("content"), str):
        return False
    if turn["role"] != ASSISTANT or turn.get("weight") == 0:
        return True
    return loss_on == "last" and index < len(turns) - 1


def _level(lengths: list[int], excess: int) -> int:
    """The most tokens that each text may have, so that all together lose ``excess``."""
    longest_first = sorted(lengths, reverse=True)
    total = 0
    # The longest texts lose what they have beyond the next one, until that is enough.
    for number, length in enumerate(longest_first, start=1):
        total += length
        next_length = longest_first[number] if number < len(lengths) else 0
        if total - number * next_length >= excess:
            return (total - excess) // number
    return 0


def _shorten_text(text: str, share: float) -> str:
    """A text without its middle, so that a ``share`` of its characters is left."""
    if share >= 1:
        return text
    size = int(len(text) * share)
    begin = size // 2
    end = size - begin
    return text[:begin] + text[len(text) - end :]
