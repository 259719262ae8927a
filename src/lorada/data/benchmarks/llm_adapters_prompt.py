"""The prompt of LLM-Adapters with its exact white space, and protocols for rows of its files.

LLM-Adapters' f-string was never dedented, so every line after the header is indented by 16 spaces.
Its prompts for training and evaluation differ in white space. Source: ``finetune.py``,
``evaluate.py`` and ``commonsense_evaluate.py`` of AGI-Edgerunners/LLM-Adapters (Hu et al., 2023).
"""

from collections.abc import Callable
from functools import partial

from lorada.data.benchmarks import quanta_prompt
from lorada.data.rows import text_of
from lorada.data.task import Protocol, Score, unchanged
from lorada.support.row_sources import Row

REPOSITORY = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/main"
MARKER = "### Response:"
INDENT = " " * 16
TASK = "Below is an instruction that describes a task"
WITH_INPUT = ", paired with an input that provides further context"
WRITE = ". Write a response that appropriately completes the request."


def training_prompt(instruction: str, context: str = "") -> str:
    """The prompt in training; ``context`` is LLM-Adapters' input, empty in the sets used here."""
    return _published(instruction, context, spaces=1 if context else 2, blank=INDENT)


def evaluation_prompt(instruction: str, context: str = "") -> str:
    """The prompt in evaluation: fewer spaces after the header and on the empty lines."""
    return _published(instruction, context, spaces=0 if context else 1, blank="")


def clean_prompt(instruction: str, context: str = "") -> str:
    """The same prompt without the odd spaces, for both training and evaluation."""
    blocks = "".join(f"\n\n{title}\n{text}" for title, text in _blocks(instruction, context))
    return f"{_header(context)}{blocks}\n\n{MARKER}\n"


def _published(instruction: str, context: str, spaces: int, blank: str) -> str:
    text = f"{_header(context)}{' ' * spaces}\n\n"
    for title, block in _blocks(instruction, context):
        text += f"{INDENT}{title}\n{INDENT}{block}\n{blank}\n"
    return f"{text}{INDENT}{MARKER}\n{INDENT}"


def _header(context: str) -> str:
    return f"{TASK}{WITH_INPUT if context else ''}{WRITE}"


def _blocks(instruction: str, context: str) -> list[tuple[str, str]]:
    given = [("### Input:", context)] if context else []
    return [("### Instruction:", instruction), *given]


def answered(output: str) -> str:
    """The model's answer: what it wrote before it began another response."""
    return output.split(MARKER)[0]


def protocols(
    gold: str, score: Score, max_new_tokens: int, check: Callable[[Row], Row] = unchanged
) -> dict[str, Protocol]:
    """Two protocols that score generated text: with the published white space, and without it.

    ``gold`` is the field of a test row with the right answer; ``check`` returns a row to score, or
    raises if its answer can never be matched.
    """
    to_score = partial(_to_score, check=check, gold=gold)

    def protocol(train: Callable[..., str], test: Callable[..., str]) -> Protocol:
        return Protocol(
            form="prompt",
            kinds=("decoder",),
            convert=partial(_to_learn, prompt=train),
            convert_test=partial(to_score, prompt=train, asked=test),
            score=score,
            generation={"num_beams": 4, "max_new_tokens": max_new_tokens},
            loss_on="all",
            joint=True,
        )

    return {
        "generate": protocol(training_prompt, evaluation_prompt),
        "generate_clean": protocol(clean_prompt, clean_prompt),
    }


def _answerable(row: Row) -> Row:
    """The row, unchanged; raises if its instruction lists options and the answer is none of them.

    Case matters, because outputs are searched for options in lower case.
    """
    instruction, answer = text_of(row, "instruction"), row["answer"]
    if quanta_prompt.FORMAT in instruction.lower():
        options = quanta_prompt.candidates(instruction)
        if answer not in options:
            raise ValueError(f"answer {answer!r} is not one of {', '.join(options)}")
    return row


def _to_learn(row: Row, prompt: Callable[..., str]) -> Row:
    row = _answerable(row)
    text = prompt(row["instruction"], row.get("input") or "")
    return {"prompt": text, "response": row["output"], "answer": row["answer"]}


def _to_score(
    row: Row,
    check: Callable[[Row], Row],
    prompt: Callable[..., str],
    asked: Callable[..., str],
    gold: str,
) -> Row:
    row = _answerable(check(row))
    texts = row["instruction"], row.get("input") or ""
    return {
        "prompt": prompt(*texts),
        "eval_prompt": asked(*texts),
        "response": row[gold],
        "answer": row["answer"],
    }
