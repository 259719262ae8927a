"""Chats as token ids: what the template writes of them, and which of these tokens a model learns.

Every answer of the assistant is learned, with its end, but for those of a ``weight`` of 0:

    answer k = what the text up to turn k has beyond the turns before it and an answer's header

A template that marks what a model writes (``{% generation %}``) says itself which tokens these are.
"""

import re
from collections.abc import Iterator
from itertools import chain, pairwise, repeat
from typing import Literal

from transformers import PreTrainedTokenizerBase

from lorada.data.chat_template import TurnsRefused, applied, for_template, rendered
from lorada.support.row_sources import Row

ASSISTANT = "assistant"
LossOn = Literal["response", "last", "all"]
MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def chat_tokens(
    row: Row, tokenizer: PreTrainedTokenizerBase, *, loss_on: LossOn = "response"
) -> tuple[list[int], list[bool]]:
    """The token ids of a chat, and whether each is learned: of answers, the last one, or all."""
    row = for_template(row, tokenizer)
    weighted = any(turn.get("weight") == 0 for turn in row["messages"])
    if _has_marks(row, tokenizer) and not (loss_on == "last" or weighted):
        ids, learned = _marked(row, tokenizer)
    else:
        pieces = _pieces(row, tokenizer, loss_on)
        parts = list(continuations([("", pieces[0]), *pairwise(pieces)], tokenizer))
        ids = list(chain(*parts))
        answers = (repeat(number % 2 == 1, len(part)) for number, part in enumerate(parts))
        learned = list(chain(*answers))
    return ids, [True] * len(ids) if loss_on == "all" else learned


def written_answer(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a model writes that gives the last turn of a chat, without special tokens."""
    turns = [{key: turn[key] for key in turn if key != "weight"} for turn in row["messages"]]
    loss_on: LossOn = "response" if _has_marks(row, tokenizer) else "last"
    ids, learned = chat_tokens({**row, "messages": turns}, tokenizer, loss_on=loss_on)
    end = max((index + 1 for index, counts in enumerate(learned) if counts), default=0)
    start = end
    while start and learned[start - 1]:
        start -= 1
    return str(tokenizer.decode(ids[start:end], skip_special_tokens=True)).strip()


def _has_marks(row: Row, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template itself says what the model writes; a slow tokenizer has no offsets."""
    if not (tokenizer.is_fast and tokenizer.chat_template):
        return False
    return bool(MARK.search(tokenizer.get_chat_template(tools=row.get("tools"))))


def turn_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special token that the template ends an answer with, if it does."""
    turns = [{"role": "user", "content": "question"}, {"role": ASSISTANT, "content": "reply"}]
    try:
        after = rendered({"messages": turns}, 2, tokenizer).rpartition("reply")[2]
    except TurnsRefused:  # no template, or one for other turns than these
        return []
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    return [one for one in ids if one in special][:1]


def continuations(
    pairs: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[int]]:
    """The token ids of the second text of each pair, where it follows the first.

    A tokenizer may split a text differently when it stands alone. If a token spans both, the second
    is tokenised alone, as where it is generated.
    """
    texts = [*(a for a, _ in pairs), *(b for _, b in pairs), *(a + b for a, b in pairs)]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    count = len(pairs)
    for before, own, both in zip(
        ids[:count], ids[count : 2 * count], ids[2 * count :], strict=True
    ):
        continues = len(both) > len(before) and both[: len(before)] == before
        yield both[len(before) :] if continues else own


def _marked(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """The tokens between the template's marks, and the end token right behind them."""
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    found = applied(row, len(row["messages"]), tokenizer, **options)
    ids, learned = list(found["input_ids"]), list(map(bool, found["assistant_masks"]))
    ends = {tokenizer.eos_token_id, *turn_end(tokenizer)}
    for i in range(1, len(ids)):
        learned[i] = learned[i] or (learned[i - 1] and ids[i] in ends)
    return ids, learned


def _pieces(row: Row, tokenizer: PreTrainedTokenizerBase, loss_on: LossOn) -> list[str]:
    """The text of a chat: what is read, an answer, what is read, another answer, and so on.

    It ends with the last answer that is learned, and with the whole chat if everything is.
    """
    turns, last = row["messages"], loss_on == "last"
    # An opening by the assistant answers nothing, and no template has a prompt for it: it is read.
    answers = [k for k in range(1, len(turns)) if turns[k]["role"] == ASSISTANT]
    whole, cuts = rendered(row, len(turns), tokenizer), [0]
    if last and turns[-1]["role"] != ASSISTANT:
        raise TurnsRefused(
            "loss_on=last learns the last turn, which is none of the assistant: leave it out"
        )
    for k in [len(turns) - 1] if last else answers:
        if turns[k].get("weight") == 0:
            continue
        before = rendered(row, k, tokenizer, add_generation_prompt=True)
        after = whole if k == len(turns) - 1 else rendered(row, k + 1, tokenizer)
        if not whole.startswith(after):  # some write the end token behind a whole chat
            after = after.removesuffix(tokenizer.eos_token or "")
        if not (whole.startswith(after) and after.startswith(before)):
            remedy = "" if last else "try loss_on=last, which learns the last turn alone, or "
            raise TurnsRefused(
                f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} renders a turn "
                "differently once it is answered, as those do that drop or begin thinking: "
                f"{remedy}take rows of prompt and response"
            )
        cuts += [len(before), len(after)]
    if loss_on == "all":  # what follows the last answer is learned too
        cuts.append(len(whole))
    # A chat without answers is only read.
    return [whole[start:stop] for start, stop in pairwise(cuts)] or [whole]
