"""What the seeds of one method answer together: the majority, the mean probability, the mean."""

import numpy as np
import pytest
from made_up_rows import made_up_answers, write_classifiers
from rows_worlds import BASE, luck_of, vote_draw

from lorada.compare.held_out_rows import AskedRow
from lorada.compare.read_results import CandidateResult, ScoredRun, read_comparison
from lorada.compare.rows_summary import summarize_rows
from lorada.compare.seed_votes import VoteScores, vote_of, vote_scores
from lorada.compare.stored_plan import Candidate
from lorada.decision.run_variances import TINY
from lorada.runs.result import Prediction, RunResult

NAME = "test.jsonl"


def candidate_of(form: str, answers: list[list], scores: list[list[float]]) -> CandidateResult:
    """A method whose runs gave these answers, runs × rows."""
    keys = [(NAME, number) for number in range(1, len(answers[0]) + 1)]
    runs = []
    for seed, (of_run, of_scores) in enumerate(zip(answers, scores, strict=True), 1):
        lines = {
            key: Prediction(
                rows=NAME,
                row=key[1],
                answer=answer,
                score=score,
                loss=None,
                metrics={"exact_match": score},
            )
            for key, answer, score in zip(keys, of_run, of_scores, strict=True)
        }
        result = RunResult(labels=["a", "b", "c"], form=form, history=[], metrics={})
        scored = dict(zip(keys, of_scores, strict=True))
        runs.append(ScoredRun(f"seed{seed}", seed, result, lines, scored))
    table = np.array(scores)
    return CandidateResult("lora", Candidate("lora", {}), runs=runs, scores=table,
                           losses=table * np.nan)  # fmt: skip


def test_short_answers_are_voted_on_and_have_the_score_of_the_answer():
    answers = [["7", "8", "1"], ["7 ", "9", "2"], ["6", "9", "2"]]
    candidate = candidate_of("prompt", answers, [[100, 0, 0], [100, 100, 100], [0, 100, 100]])
    rows = [AskedRow("?", one) for one in ("7", "9", "2")]
    voted = vote_scores(candidate, list(candidate.runs[0].predictions), rows, "exact_match")
    assert (voted.by, voted.rows.tolist()) == ("majority", [100, 100, 100])


def test_numbers_are_averaged_and_labels_are_each_decided_by_the_majority():
    numbers = candidate_of("score", [[1.0, 4.0], [3.0, 4.0]], [[-1, 0], [-1, 0]])
    rows = [AskedRow("?", 2.0), AskedRow("?", 5.0)]
    voted = vote_scores(numbers, list(numbers.runs[0].predictions), rows, "mae")
    assert (voted.by, voted.rows.tolist()) == ("mean", [0, -1])
    sets = candidate_of("labels", [[["a", "b"]], [["b", "c"]], [["b", "a"]]], [[0], [0], [0]])
    keys = list(sets.runs[0].predictions)
    voted = vote_scores(sets, keys, [AskedRow("?", ["a", "b"])], "exact_match")
    assert voted.rows.tolist() == [100]
    assert vote_scores(sets, keys, [AskedRow("?", ["a"])], "f1").rows[0] == pytest.approx(
        200 / 3, abs=TINY
    )


def test_nothing_is_voted_on_by_the_loss_or_where_answers_are_long_texts():
    candidate = candidate_of("prompt", [["a"], ["b"]], [[31.5], [40.0]])
    for run in candidate.runs:
        for key, line in run.predictions.items():
            run.predictions[key] = line.model_copy(update={"metrics": {"rougeL": 31.5}})
    keys, rows = list(candidate.runs[0].predictions), [AskedRow("?", "a")]
    assert vote_scores(candidate, keys, rows, "loss") is None
    assert vote_scores(candidate, keys, rows, "rougeL") is None


def test_of_two_classes_the_mean_probability_decides(tmp_path):
    answers = made_up_answers(np.random.default_rng(5), rows=200, flipped=0.0, clear=1.0)
    results = read_comparison(write_classifiers(tmp_path, answers))
    votes = {vote.method: vote for vote in summarize_rows(results).votes}
    for name, of_method in zip(("lora", "ia3"), answers.probabilities, strict=True):
        right = (of_method.mean(axis=0) > 0.5) == (answers.labels == 1)
        assert votes[name].by == "mean probability"
        assert votes[name].score == pytest.approx(100 * right.mean(), abs=TINY)
        assert votes[name].runs == 3
        assert votes[name].gain == pytest.approx(votes[name].score - votes[name].alone, abs=TINY)


def test_the_interval_of_a_vote_holds_what_the_same_runs_score_on_other_rows():
    random = np.random.default_rng(2)
    luck = luck_of(BASE, random)
    draws = [vote_draw(BASE, luck, random) for _ in range(400)]
    truth = np.mean([voted.mean() for _, voted in draws])
    held = []
    for scores, voted in draws:
        vote = vote_of("lora", VoteScores("majority", voted), scores, share=True)
        held.append(vote.low <= truth <= vote.high)
    assert 0.92 <= np.mean(held) <= 0.98
