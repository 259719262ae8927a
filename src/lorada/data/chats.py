"""Chats as token ids: what the template writes of them, and which of these tokens a model learns.

Every answer of the assistant is learned, with its end, but for those of a ``weight`` of 0:

    answer k = what the text up to turn k has beyond the turns before it and an answer's header

A template that marks what a model writes (``{% generation %}``) says itself which tokens these are.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
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
    """The token ids of a chat, and whether each is learned: of answers, the last one, or all.

    Args:
        row: with ``messages``, and ``tools`` if it has any.
        tokenizer: with a chat template.
        loss_on: ``response`` learns all answers of the assistant, ``last`` the last turn alone,
            ``all`` every token.

    Raises:
        TurnsRefused: if the template refuses the turns, if it renders an answered turn differently,
            and with ``last`` if the last turn is none of the assistant.
    """
    row = for_template(row, tokenizer)
    # The template's own marks are surest, but they mark all answers alike: those of weight 0 too,
    # and not the last one alone. For these, texts of more and more turns are compared.
    leaves_out_answers = any(turn.get("weight") == 0 for turn in row["messages"])
    marks_all_learned = loss_on != "last" and not leaves_out_answers
    if marks_all_learned and _marks_answers(row, tokenizer):
        ids, learned = _tokens_by_marks(row, tokenizer)
    else:
        ids, learned = _tokens_by_stretches(row, tokenizer, loss_on)
    if loss_on == "all":
        learned = [True] * len(ids)
    return ids, learned


def written_answer(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a model writes that gives the last turn of a chat, without special tokens.

    Raises:
        TurnsRefused: as ``chat_tokens``.
    """
    # It is written whether or not it would be learned, so weights do not matter.
    turns = []
    for turn in row["messages"]:
        turns.append({key: value for key, value in turn.items() if key != "weight"})
    loss_on: LossOn = "response" if _marks_answers(row, tokenizer) else "last"
    ids, learned = chat_tokens({**row, "messages": turns}, tokenizer, loss_on=loss_on)
    # The last tokens that are learned one after another; behind them the template may go on.
    end = len(ids)
    while end and not learned[end - 1]:
        end -= 1
    start = end
    while start and learned[start - 1]:
        start -= 1
    return str(tokenizer.decode(ids[start:end], skip_special_tokens=True)).strip()


def turn_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The id of the special token that the template ends an answer with; an empty list if none.

    It is found in a chat of one question and one reply: what stands behind the reply.
    """
    turns = [{"role": "user", "content": "question"}, {"role": ASSISTANT, "content": "reply"}]
    try:
        text = rendered({"messages": turns}, 2, tokenizer)
    except TurnsRefused:  # no template, or one for other turns than these
        return []
    _, _, behind_reply = text.rpartition("reply")
    ids = tokenizer(behind_reply, add_special_tokens=False)["input_ids"]
    special_ids = set(tokenizer.all_special_ids)
    return [token for token in ids if token in special_ids][:1]


def tokens_behind(
    pairs: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[int]]:
    """The token ids of the second text of each pair, where it follows the first.

    A tokenizer may split a text differently when it stands alone. If a token spans both, the second
    is tokenised alone, as where it is generated.

    Args:
        pairs: a text, and the text behind it.
        tokenizer: adds no special tokens here.
    """
    first_texts = [first for first, _ in pairs]
    second_texts = [second for _, second in pairs]
    joined_texts = [first + second for first, second in pairs]
    # One call for all: a fast tokenizer spreads the texts of a call over the processor's cores.
    texts = [*first_texts, *second_texts, *joined_texts]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    count = len(pairs)
    first_ids, second_ids, joined_ids = ids[:count], ids[count : 2 * count], ids[2 * count :]
    for before, alone, joined in zip(first_ids, second_ids, joined_ids, strict=True):
        is_split_between = len(joined) > len(before) and joined[: len(before)] == before
        if is_split_between:
            yield joined[len(before) :]
        else:
            yield alone


def _marks_answers(row: Row, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template itself says what the model writes; a slow tokenizer has no offsets."""
    if not (tokenizer.is_fast and tokenizer.chat_template):
        return False
    return bool(MARK.search(tokenizer.get_chat_template(tools=row.get("tools"))))


def _tokens_by_marks(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """The tokens of a chat; learned are those between the marks, and the end token behind them."""
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    encoded = applied(row, len(row["messages"]), tokenizer, **options)
    ids = list(encoded["input_ids"])
    learned = [bool(is_marked) for is_marked in encoded["assistant_masks"]]
    # Most templates have the end of a turn outside the marks, and a model has to learn to stop.
    ends = {tokenizer.eos_token_id, *turn_end(tokenizer)}
    for index in range(1, len(ids)):
        if learned[index - 1] and ids[index] in ends:
            learned[index] = True
    return ids, learned


def _tokens_by_stretches(
    row: Row, tokenizer: PreTrainedTokenizerBase, loss_on: LossOn
) -> tuple[list[int], list[bool]]:
    """The tokens of a chat; learned is every second of its stretches: an answer with its end.

    Raises:
        TurnsRefused: as ``_stretches``.
    """
    stretches = _stretches(row, tokenizer, loss_on)
    pairs = [("", stretches[0]), *pairwise(stretches)]
    ids: list[int] = []
    learned: list[bool] = []
    for number, stretch_ids in enumerate(tokens_behind(pairs, tokenizer)):
        is_answer = number % 2 == 1
        ids += stretch_ids
        learned += [is_answer] * len(stretch_ids)
    return ids, learned


def _stretches(row: Row, tokenizer: PreTrainedTokenizerBase, loss_on: LossOn) -> list[str]:
    """The text of a chat: what is read, an answer, what is read, another answer, and so on.

    It ends with the last answer that is learned, and with the whole chat if everything is.

    Raises:
        TurnsRefused: if the text up to a turn is no beginning of the text of the whole chat, as
            then nobody can say which part is the answer.
    """
    turns = row["messages"]
    whole_text = rendered(row, len(turns), tokenizer)
    cuts = [0]
    for index in _learned_answers(turns, loss_on):
        # The header of an answer (``<|im_start|>assistant``) is read, so it stands before the cut.
        before = rendered(row, index, tokenizer, add_generation_prompt=True)
        is_last_turn = index == len(turns) - 1
        after = whole_text if is_last_turn else rendered(row, index + 1, tokenizer)
        if not whole_text.startswith(after):  # some write the end token behind a whole chat
            after = after.removesuffix(tokenizer.eos_token or "")
        is_continued = whole_text.startswith(after) and after.startswith(before)
        if not is_continued:
            raise _rendered_differently(tokenizer, loss_on)
        cuts += [len(before), len(after)]
    if loss_on == "all":  # what follows the last answer is learned too
        cuts.append(len(whole_text))
    if len(cuts) == 1:  # a chat without answers is only read
        return [whole_text]
    return [whole_text[start:stop] for start, stop in pairwise(cuts)]


def _learned_answers(turns: list[Row], loss_on: LossOn) -> list[int]:
    """The indices of the turns that are learned as answers.

    With ``loss_on="last"`` it is the last turn, which has to be the assistant's; else all of the
    assistant's. Those of weight 0 are left out.

    Raises:
        TurnsRefused: with ``last``, if the last turn is none of the assistant.
    """
    if loss_on == "last":
        if turns[-1]["role"] != ASSISTANT:
            raise TurnsRefused(
                "loss_on=last learns the last turn, which is none of the assistant: leave it out"
            )
        answers = [len(turns) - 1]
    else:
        # An opening by the assistant answers nothing, and no template has a prompt for it: it is
        # read.
        answers = [k for k in range(1, len(turns)) if turns[k]["role"] == ASSISTANT]
    return [index for index in answers if turns[index].get("weight") != 0]


def _rendered_differently(tokenizer: PreTrainedTokenizerBase, loss_on: LossOn) -> TurnsRefused:
    """The refusal of a template by which the text before an answer is no beginning of the whole."""
    remedy = "" if loss_on == "last" else "try loss_on=last, which learns the last turn alone, or "
    return TurnsRefused(
        f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} renders a turn "
        "differently once it is answered, as those do that drop or begin thinking: "
        f"{remedy}take rows of prompt and response"
    )
