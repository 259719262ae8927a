"""Reads the JSON files that promptfoo writes: ``promptfoo eval --output FILE.json``."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from lorada.decision.log_records import PROMPTFOO, Log, LogRow, as_number, broken

PASSED = "pass"  # whether an answer passed all assertions: what promptfoo counts
SCORE = "score"  # the mean over an answer's assertions, with their weights
FAILED_TO_ANSWER = 2  # the reason of a failure that is no answer's
LONGEST_NAME = 40  # letters of a prompt or a row's variables


def is_promptfoo(content: Any) -> bool:
    """Whether the content of a JSON file is promptfoo's."""
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        return False
    results = content["results"].get("results")
    return isinstance(results, list) and "version" in content["results"]


def read_promptfoo(content: dict[str, Any], path: Path, folders: tuple[str, ...]) -> list[Log]:
    """Read the answers of each provider to each prompt.

    Args:
        content: of the JSON file.
        path: of the file.
        folders: in which it lies, below the folder that the user named, and its own name.

    Raises:
        ValueError: for a file that is broken.
    """
    repeats = int((content.get("runtimeOptions") or {}).get("repeat") or 1)
    try:
        results = content["results"]["results"]
        by_source = defaultdict(list)
        for result in sorted(results, key=_place):
            by_source[_provider(result), result["prompt"]["label"]].append(result)
        for (provider, _), of_source in by_source.items():
            if len({result.get("promptIdx") for result in of_source}) > 1:
                raise ValueError(
                    f"{path} has several providers {provider}: give each a label of its own in "
                    "promptfoo's configuration"
                )
        prompts = [prompt for _, prompt in by_source]
        return [
            Log(
                tool=PROMPTFOO,
                path=path,
                folders=folders,
                model=_name(provider, prompt, prompts),
                task="",
                rows=_rows(of_source, repeats),
            )
            for (provider, prompt), of_source in by_source.items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise broken(path, f"a result has no {error}") from error


def _place(result: dict[str, Any]) -> tuple[int, int]:
    """Where a result stands in the table of tests and prompts; answers come in any order."""
    return result.get("testIdx", 0), result.get("promptIdx", 0)


def _provider(result: dict[str, Any]) -> str:
    provider = result["provider"]
    return str(provider.get("label") or provider["id"])


def _name(provider: str, prompt: str, prompts: list[str]) -> tuple[str, ...]:
    """What tells the answers of a provider to a prompt from others in the file."""
    different_prompts = list(dict.fromkeys(prompts))
    if len(different_prompts) == 1:
        return (provider,)
    shown = " ".join(prompt.split())
    if len(shown) > LONGEST_NAME:
        shown = f"{shown[:LONGEST_NAME]}… ({different_prompts.index(prompt) + 1})"
    return (provider, shown)


def _rows(results: list[dict[str, Any]], repeats: int) -> tuple[LogRow, ...]:
    """A row for each answer.

    A test has no id, so it is known by what it consists of. With ``--repeat`` each stands in the
    results so many times; any further ones are tests that the user wrote twice.
    """
    rows = []
    times_seen: dict[str, int] = defaultdict(int)
    for result in results:
        test = _test_name(result)
        copy, repeat = divmod(times_seen[test], repeats)
        times_seen[test] += 1
        no_answer = result.get("failureReason") == FAILED_TO_ANSWER
        rows.append(
            LogRow(
                row=f"{test}, copy {copy + 1}" if copy else test,
                scores={} if no_answer else _scores(result),
                repeat=repeat,
                error=str(result.get("error") or "no answer") if no_answer else "",
            )
        )
    return tuple(rows)


def _scores(result: dict[str, Any]) -> dict[str, float]:
    """Metric → score of an answer, those that assertions name too."""
    values = {
        **(result.get("namedScores") or {}),
        SCORE: result["score"],
        PASSED: result["success"],
    }
    numbers = {str(metric): as_number(value) for metric, value in values.items()}
    return {metric: number for metric, number in numbers.items() if number is not None}


def _test_name(result: dict[str, Any]) -> str:
    """A name of a test that is the same in every file, and begins so that a user knows it."""
    test = result.get("testCase") or {}
    variables = test.get("vars") or result["vars"]
    parts = [test.get("description"), variables, test.get("assert")]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    shown = test.get("description") or ", ".join(f"{k}={v}" for k, v in variables.items())
    return f"{' '.join(str(shown).split())[:LONGEST_NAME]} ({digest[:8]})"
