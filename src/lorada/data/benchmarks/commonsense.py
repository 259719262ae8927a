"""Commonsense reasoning: eight tasks, in the words of LLM-Adapters (Hu et al., 2023).

Rows have the fields of LLM-Adapters' files, and without a local folder are read from its
repository. One protocol generates a text and searches it for an option (LLM-Adapters); the other
chooses the likeliest option (QuanTA). LLM-Adapters leaves out the passages of BoolQ.
"""

import re
from functools import partial

from lorada.data.benchmarks.published_prompts import REPOSITORY, answered, choice, generating
from lorada.data.scoring.metrics import accuracy
from lorada.data.task import Metrics, Protocol, Score, Source, Task
from lorada.support.row_sources import Row

FOLDER = "commonsense_llm_adapters"
# The training sets of all eight tasks; a local folder has a smaller mix of them.
MIX = Source(
    f"{FOLDER}/commonsense_mix", "train", f"{REPOSITORY}/ft-training_set/commonsense_170k.json"
)


def first_option(output: str, options: tuple[str, ...]) -> str | None:
    """The option that a generated text names first, in lower case; None if it names none."""
    match = re.search("|".join(options), answered(output))
    return match[0] if match else None


def match_options(outputs: list[str], rows: list[Row], options: tuple[str, ...]) -> Metrics:
    """Percent of right options, and of outputs that name no option; these count as wrong."""
    named_options = [first_option(output, options) for output in outputs]
    pairs = zip(named_options, rows, strict=True)
    right_count = sum(option == row["answer"] for option, row in pairs)
    return {
        "accuracy": 100.0 * right_count / len(rows),
        "unparsable": 100.0 * named_options.count(None) / len(rows),
    }


def choose_options(indices: list[int], rows: list[Row]) -> Metrics:
    """Percent of right options; an option is always chosen, so no output is unparsable."""
    return {**accuracy(indices, rows), "unparsable": 0.0}


def _numbered(word: str, count: int) -> tuple[str, ...]:
    return tuple(f"{word}{number}" for number in range(1, count + 1))


def _task(summary: str, folder: str, options: tuple[str, ...]) -> Task:
    def source(split: str) -> Source:
        address = f"{REPOSITORY}/dataset/{folder}/{split}.json"
        return Source(f"{FOLDER}/{folder}", split, address)

    score: Score = partial(match_options, options=options)
    return Task(
        summary=f"{summary}; accuracy",
        benchmark="commonsense",
        protocols={
            "generate": generating("output", score, max_new_tokens=32),
            "likelihood": Protocol("choice", ("decoder",), choice, choose_options),
        },
        train={"own": source("train"), "commonsense_170k": MIX},
        test={"": source("test")},
    )


ANSWERS = _numbered("answer", 5)

COMMONSENSE = {
    "boolq": _task("yes-or-no questions, without their passages", "boolq", ("true", "false")),
    "piqa": _task("which of two ways to reach a goal", "piqa", _numbered("solution", 2)),
    "siqa": _task("what people feel and do, in three options", "social_i_qa", ANSWERS),
    "hellaswag": _task("which of four endings fits a story", "hellaswag", _numbered("ending", 4)),
    "winogrande": _task(
        "which of two words a sentence is about", "winogrande", _numbered("option", 2)
    ),
    "arc_easy": _task("science questions, the easier part", "ARC-Easy", ANSWERS),
    "arc_challenge": _task("science questions, the harder part", "ARC-Challenge", ANSWERS),
    "openbookqa": _task(
        "science questions that need a fact and common sense", "openbookqa", ANSWERS
    ),
}
