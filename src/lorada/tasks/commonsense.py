"""Commonsense reasoning: eight tasks, in the words of LLM-Adapters (Hu et al., 2023).

Rows of LLM-Adapters' files have an ``instruction``. Rows from the hub do not, and get one in the
same words. One protocol generates a text and searches it for an option (LLM-Adapters); the other
chooses the likeliest option (QuanTA). LLM-Adapters leaves out the passages of BoolQ.
"""

import re
from collections.abc import Callable
from functools import partial

from lorada.tasks import llm_adapters_prompt, quanta_prompt
from lorada.tasks.metrics import Metrics, Score, accuracy
from lorada.tasks.rows import Row
from lorada.tasks.task import Protocol, Source, Task

FOLDER = "commonsense_llm_adapters"
# The training sets of all eight tasks; a local folder has a smaller mix of them.
MIX = Source(
    f"{FOLDER}/commonsense_mix",
    "train",
    f"{llm_adapters_prompt.REPOSITORY}/ft-training_set/commonsense_170k.json",
)

QUESTION = "Please choose the correct answer to the question: "


def first_option(output: str, options: tuple[str, ...]) -> str | None:
    """The option that a generated text names first, in lower case; None if it names none."""
    found = re.search("|".join(options), llm_adapters_prompt.answered(output))
    return found[0] if found else None


def match_options(outputs: list[str], rows: list[Row], options: tuple[str, ...]) -> Metrics:
    """Percent of right options, and of outputs that name no option; these count as wrong."""
    found = [first_option(output, options) for output in outputs]
    right = sum(option == row["answer"] for option, row in zip(found, rows, strict=True))
    return {
        "accuracy": 100.0 * right / len(rows),
        "unparsable": 100.0 * found.count(None) / len(rows),
    }


def choose_options(chosen: list[int], rows: list[Row]) -> Metrics:
    """Percent of right options; an option is always chosen, so no output is unparsable."""
    return {**accuracy(chosen, rows), "unparsable": 0.0}


def _row(instruction: str, options: tuple[str, ...], right: int) -> Row:
    """A row with LLM-Adapters' fields; ``right`` is the index of the right option."""
    if not 0 <= right < len(options):
        raise ValueError(f"label {right} is not in 0–{len(options) - 1}: is this a test split?")
    return {
        "instruction": f"{instruction}Answer format: {'/'.join(options)}",
        "input": "",
        "output": f"the correct answer is {options[right]}",
        "answer": options[right],
    }


def _numbered(word: str, count: int) -> tuple[str, ...]:
    return tuple(f"{word}{number}" for number in range(1, count + 1))


def _listed(word: str, texts: list[str], between: str = " ") -> str:
    return between.join(f"{word.title()}{i}: {text}" for i, text in enumerate(texts, start=1))


def _boolq(row: Row) -> Row:
    if not isinstance(row["answer"], bool):
        raise ValueError(f"answer {row['answer']!r} is not one of true, false")
    question = "Please answer the following question with true or false, question: "
    text = f"{question}{row['question']}?\n\n"
    return _row(text, ("true", "false"), 0 if row["answer"] else 1)


def _piqa(row: Row) -> Row:
    solutions = _listed("solution", [row["sol1"], row["sol2"]], "\n\n")
    text = f"Please choose the correct solution to the question: {row['goal']}\n\n{solutions}\n\n"
    return _row(text, _numbered("solution", 2), int(row["label"]))


def _siqa(row: Row) -> Row:
    answers = _listed("answer", [row["answerA"], row["answerB"], row["answerC"]])
    text = f"{QUESTION}{row['context']} {row['question']}\n\n{answers}\n\n"
    return _row(text, _numbered("answer", 3), int(row["label"] or 0) - 1)


def _hellaswag(row: Row) -> Row:
    text = (
        "Please choose the correct ending to complete the given sentence: "
        f"{row['activity_label']}: {row['ctx']}\n\n{_listed('ending', row['endings'])}\n\n"
    )
    right = -1 if row["label"] == "" else int(row["label"])
    return _row(text, _numbered("ending", len(row["endings"])), right)


def _winogrande(row: Row) -> Row:
    text = (
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        f"{row['sentence']}\n\n{_listed('option', [row['option1'], row['option2']])} "
    )
    return _row(text, _numbered("option", 2), int(row["answer"] or 0) - 1)


def _lettered(row: Row, question: str) -> Row:
    """A row of ARC or OpenBookQA; ARC calls some options by numbers, not letters."""
    texts, names = row["choices"]["text"], row["choices"]["label"]
    right = names.index(row["answerKey"]) if row["answerKey"] in names else -1
    text = f"{QUESTION}{row[question]}\n\n{_listed('answer', texts)}\n\n"
    return _row(text, _numbered("answer", len(texts)), right)


def _shaped(row: Row, words: Callable[[Row], Row]) -> Row:
    return row if "instruction" in row else words(row)


def _likelihood(row: Row, words: Callable[[Row], Row]) -> Row:
    return quanta_prompt.choice(_shaped(row, words))


def _task(
    summary: str, folder: str, hub: tuple[str, str | None, str], options: tuple[str, ...],
    words: Callable[[Row], Row],
) -> Task:  # fmt: skip
    address, config, test = hub
    score: Score = partial(match_options, options=options)
    likelihood = Protocol("choice", ("decoder",), partial(_likelihood, words=words), choose_options)
    shape = partial(_shaped, words=words)
    return Task(
        summary=f"{summary}; accuracy",
        benchmark="commonsense",
        protocols={
            **llm_adapters_prompt.protocols(shape, "output", score, max_new_tokens=32),
            "likelihood": likelihood,
        },
        train={
            "own": Source(f"{FOLDER}/{folder}", "train", address, config),
            "commonsense_170k": MIX,
        },
        test={"": Source(f"{FOLDER}/{folder}", "test", address, config, hub_split=test)},
    )


ANSWERS = _numbered("answer", 5)
ARC = "allenai/ai2_arc"

COMMONSENSE = {
    "boolq": _task(
        "yes-or-no questions, without their passages",
        "boolq", ("google/boolq", None, "validation"), ("true", "false"), _boolq,
    ),
    # Copies of PIQA and SIQA: the originals on the hub need code that ``datasets`` no longer runs.
    "piqa": _task(
        "which of two ways to reach a goal",
        "piqa", ("baber/piqa", None, "validation"), _numbered("solution", 2), _piqa,
    ),
    "siqa": _task(
        "what people feel and do, in three options",
        "social_i_qa", ("lighteval/siqa", None, "validation"), ANSWERS, _siqa,
    ),
    "hellaswag": _task(
        "which of four endings fits a story",
        "hellaswag", ("Rowan/hellaswag", None, "validation"), _numbered("ending", 4), _hellaswag,
    ),
    "winogrande": _task(
        "which of two words a sentence is about", "winogrande",
        ("allenai/winogrande", "winogrande_xl", "validation"), _numbered("option", 2), _winogrande,
    ),
    "arc_easy": _task(
        "science questions, the easier part",
        "ARC-Easy", (ARC, "ARC-Easy", "test"), ANSWERS, partial(_lettered, question="question"),
    ),
    "arc_challenge": _task(
        "science questions, the harder part", "ARC-Challenge",
        (ARC, "ARC-Challenge", "test"), ANSWERS, partial(_lettered, question="question"),
    ),
    "openbookqa": _task(
        "science questions that need a fact and common sense", "openbookqa",
        ("allenai/openbookqa", "main", "test"), ANSWERS,
        partial(_lettered, question="question_stem"),
    ),
}  # fmt: skip
