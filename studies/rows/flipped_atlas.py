"""Measures how well `lorada rows` finds wrong labels among the stored answers of the atlas.

`python studies/rows/flipped_atlas.py` takes the runs of `docs/results/atlas.json.gz` (two classes,
2,000 held-out rows, ten methods with five seeds), flips some of the held-out labels, and prints how
many of the flipped ones are at the top of the list: their share among the first 100 rows, and the
share of all flipped labels that these are, in percent; beside them confident learning (Northcutt et
al., 2021) on the mean probabilities of the same runs, and chance. *three runs* has one method with
three seeds. The labels that were learned are as they were, so models are better than where these
are wrong too. SST-2 has wrong labels of its own, which count as right here.

The last columns are the mean score of a single run over the methods, that of the vote of their
seeds, and for how many methods the vote is better.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from confident_learning import confident_order
from flipped_labels import figures

from lorada.compare.held_out_rows import AskedRow
from lorada.compare.read_results import CandidateResult, Results, ScoredRun
from lorada.compare.row_findings import find_rows
from lorada.compare.seed_votes import vote_of, vote_scores
from lorada.compare.spec import Comparison
from lorada.compare.stored_plan import Candidate, ComparisonPlan, TrainingRows
from lorada.runs.result import Prediction, RunResult

ATLAS = Path(__file__).parents[2] / "docs" / "results" / "atlas.json.gz"
TASKS = ("sst2_even", "syllogism")
SHARES = (0.05, 0.1)  # of labels that are flipped
FIRST = 100  # rows of a list that are looked at
NAME, LABELS = "test", ("a", "b")
RESULT = RunResult(labels=[*LABELS], form="label", history=[], metrics={})


def main() -> None:
    """Print the table."""
    atlas = json.loads(gzip.decompress(ATLAS.read_bytes()))
    heads = (
        "task, flipped", f"rows: first {FIRST}, recall", "confident learning", "three runs: rows",
        "three runs: confident learning", "chance", "one run", "vote", "vote is better",
    )  # fmt: skip
    print(f"| {' | '.join(heads)} |")
    print(f"|---|{'--:|' * (len(heads) - 1)}")
    for task in TASKS:
        for share in SHARES:
            print(line_of(atlas, task, share), flush=True)


def line_of(atlas: dict, task: str, share: float) -> str:
    """A line of the table."""
    runs = dict(losses_of(atlas, task))
    rows = next(iter(runs.values())).shape[1]
    wrong = np.random.default_rng(65).permutation(rows) < round(share * rows)
    cells = []
    for chosen in (runs, {"lora": runs["lora"][:3]}):
        ours = our_order(chosen, wrong)
        confident = confident_order(*class_table(chosen, wrong))
        for order in (ours, confident):
            precision, recall = figures(order, wrong, FIRST)
            cells.append(f"{precision:.0f}, {recall:.0f}")
    alone, together = np.array(list(votes_of(runs))).T
    better = f"{(together > alone).sum()} of {len(alone)}"
    last = [f"{100 * wrong.mean():.0f}", f"{alone.mean():.1f}", f"{together.mean():.1f}", better]
    return f"| {task}, {100 * share:g} % | {' | '.join([*cells, *last])} |"


def class_table(runs: dict[str, np.ndarray], wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean probability of two classes over all runs, rows × 2, and the labels.

    The atlas does not name the right class of a row, so it is drawn.
    """
    of_right = np.exp(-np.concatenate([*runs.values()])).mean(axis=0)
    right = np.random.default_rng(1).integers(0, 2, len(wrong))
    of_second = np.where(right, of_right, 1 - of_right)
    return np.stack([1 - of_second, of_second], axis=1), np.where(wrong, 1 - right, right)


def losses_of(atlas: dict, task: str) -> Iterator[tuple[str, np.ndarray]]:
    """The losses of the right class of each method that has them, seeds × rows."""
    for method, stored in atlas[task].items():
        losses = np.array(stored["losses"], dtype=float)
        if losses.ndim == 2 and np.isfinite(losses).all():
            yield method, np.maximum(losses, 1e-12)


def results_of(runs: dict[str, np.ndarray], wrong: np.ndarray) -> Results:
    """A comparison with these losses, in which the labels of some rows are flipped.

    The right class of each row is called a; where the label is flipped it says b.
    """
    keys = [(NAME, number) for number in range(1, len(wrong) + 1)]
    candidates = []
    for method, losses in runs.items():
        of_label = np.where(wrong, -np.log1p(-np.exp(-losses)), losses)
        scores = 100.0 * (of_label < np.log(2))
        scored_runs = []
        for seed, table in enumerate(scores, 1):
            predictions = {}
            for key, score, flipped in zip(keys, table, wrong, strict=True):
                is_first = bool(score) != bool(flipped)
                answer = LABELS[0] if is_first else LABELS[1]
                predictions[key] = Prediction(
                    rows=NAME, row=key[1], answer=answer, score=score, loss=None
                )
            by_row = dict(zip(keys, table.tolist(), strict=True))
            scored_runs.append(ScoredRun(f"{method}/{seed}", seed, RESULT, predictions, by_row))
        candidate = Candidate(method, {})
        candidates.append(
            CandidateResult(method, candidate, runs=scored_runs, scores=scores, losses=of_label)
        )
    plan = ComparisonPlan(
        [one.candidate for one in candidates], 0, 8, 0, TrainingRows("", 0, ""), {}, 0, None,
        versions={}, hardware={},
    )  # fmt: skip
    asked = Comparison(recipe={}, methods=list(runs), seeds=[1, 2, 3, 4, 5])
    return Results(ATLAS.parent, asked, plan, candidates, keys)


def our_order(runs: dict[str, np.ndarray], wrong: np.ndarray) -> np.ndarray:
    """The rows as `lorada rows` lists them."""
    results = results_of(runs, wrong)
    rows = {key: AskedRow("", LABELS[int(flipped)]) for key, flipped in zip(
        results.rows, wrong, strict=True)}  # fmt: skip
    findings = find_rows(results, rows)
    if findings is None:
        raise ValueError("no answer is right or wrong")
    return np.array([row.row - 1 for row in findings.rows])


def votes_of(runs: dict[str, np.ndarray]) -> Iterator[tuple[float, float]]:
    """The mean score of a single run of each method, and that of the vote of its seeds."""
    wrong = np.zeros(next(iter(runs.values())).shape[1], dtype=bool)
    results = results_of(runs, wrong)
    for candidate in results.candidates:
        voted = vote_scores(candidate, results.rows, [], "accuracy")
        if voted is None:
            raise ValueError("classes can be voted on")
        vote = vote_of(candidate.label, voted, candidate.scores, share=True)
        yield vote.alone, vote.score


if __name__ == "__main__":
    main()
