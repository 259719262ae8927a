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
    """Read the answers of each provider to each prompt, as one log for each such pair.

    Args:
        content: of the JSON file.
        path: of the file.
        folders: in which it lies, below the folder that the user named, and its own name.

    Raises:
        ValueError: for a file that is broken, and for two providers of one name.
    """
    repeats = int((content.get("runtimeOptions") or {}).get("repeat") or 1)
    try:
        results_by_source = _results_by_source(content["results"]["results"])
        _refuse_providers_of_one_name(results_by_source, path)
        prompts = [prompt for _, prompt in results_by_source]
        logs = []
        for (provider, prompt), results in results_by_source.items():
            log = Log(
                tool=PROMPTFOO,
                path=path,
                folders=folders,
                model=_model_name(provider, prompt, prompts),
                task="",
                rows=_rows(results, repeats),
            )
            logs.append(log)
    except (KeyError, TypeError, AttributeError) as error:
        raise broken(path, f"a result has no {error}") from error
    return logs


def _results_by_source(
    results: list[dict[str, Any]],
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Provider and prompt → their results, in the order of the tests."""
    results_by_source = defaultdict(list)
    for result in sorted(results, key=_test_and_prompt):
        results_by_source[_provider_name(result), result["prompt"]["label"]].append(result)
    return results_by_source


def _test_and_prompt(result: dict[str, Any]) -> tuple[int, int]:
    """Where a result stands in the table of tests and prompts; answers come in any order."""
    return result.get("testIdx", 0), result.get("promptIdx", 0)


def _provider_name(result: dict[str, Any]) -> str:
    """The label that the user gave a provider, or else its id, such as ``openai:gpt-5``."""
    provider = result["provider"]
    return str(provider.get("label") or provider["id"])


def _refuse_providers_of_one_name(
    results_by_source: dict[tuple[str, str], list[dict[str, Any]]], path: Path
) -> None:
    """Refuse providers of one name: promptfoo numbers each with its prompt, by ``promptIdx``."""
    for (provider, _), results in results_by_source.items():
        if len({result.get("promptIdx") for result in results}) > 1:
            raise ValueError(
                f"{path} has several providers {provider}: give each a label of its own in "
                "promptfoo's configuration"
            )


def _model_name(provider: str, prompt: str, prompts: list[str]) -> tuple[str, ...]:
    """What tells the answers of a provider to a prompt from others in the file.

    It is the provider alone if all have one prompt; else the provider and the prompt, of which a
    long one is cut and numbered.
    """
    different_prompts = list(dict.fromkeys(prompts))
    if len(different_prompts) == 1:
        return (provider,)
    shown = " ".join(prompt.split())
    if len(shown) > LONGEST_NAME:
        shown = f"{shown[:LONGEST_NAME]}… ({different_prompts.index(prompt) + 1})"
    return (provider, shown)


def _rows(results: list[dict[str, Any]], repeats: int) -> tuple[LogRow, ...]:
    """A row for each answer, with its scores, or with an error where there is no answer.

    A test has no id, so it is known by what it consists of. With ``--repeat`` each stands in the
    results so many times; any further ones are tests that the user wrote twice.
    """
    rows = []
    times_seen: dict[str, int] = defaultdict(int)
    for result in results:
        name = _test_name(result)
        copy, repeat = divmod(times_seen[name], repeats)
        times_seen[name] += 1
        if copy:
            name = f"{name}, copy {copy + 1}"
        if result.get("failureReason") == FAILED_TO_ANSWER:
            error = str(result.get("error") or "no answer")
            rows.append(LogRow(row=name, scores={}, repeat=repeat, error=error))
        else:
            rows.append(LogRow(row=name, scores=_scores(result), repeat=repeat))
    return tuple(rows)


def _scores(result: dict[str, Any]) -> dict[str, float]:
    """Metric → score of an answer: its score, whether it passed, and what assertions name."""
    # What promptfoo counts itself comes last, so that no name of a user's stands in its place.
    values = {
        **(result.get("namedScores") or {}),
        SCORE: result["score"],
        PASSED: result["success"],
    }
    scores = {}
    for metric, value in values.items():
        number = as_number(value)
        if number is not None:
            scores[str(metric)] = number
    return scores


def _test_name(result: dict[str, Any]) -> str:
    """A name of a test that is the same in every file, and begins so that a user knows it.

    It is the test's description, or else its variables, and a digest of all that makes the test.
    """
    test = result.get("testCase") or {}
    variables = test.get("vars") or result["vars"]
    parts = [test.get("description"), variables, test.get("assert")]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    shown = test.get("description")
    if not shown:
        shown = ", ".join(f"{name}={value}" for name, value in variables.items())
    one_line = " ".join(str(shown).split())
    return f"{one_line[:LONGEST_NAME]} ({digest[:8]})"
