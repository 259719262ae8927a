"""The summary of a comparison: the verdict in every case, lines and their costs, commands."""

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from comparison_errors import made_up_scores
from made_up_comparison import HELD_OUT, write_made_up
from pydantic import TypeAdapter

import lorada
from lorada.compare.read_results import CandidateResult, Results, ScoredRun, read_comparison
from lorada.compare.report.summarize_comparison import summarize
from lorada.compare.report.write_report import page
from lorada.compare.spec import Comparison
from lorada.compare.stored_plan import (
    Candidate,
    ComparisonPlan,
    Search,
    TrainingRows,
    Trial,
    Untrained,
)
from lorada.data.row_lengths import RowLengths
from lorada.data.scoring.chosen_metric import ChosenMetric
from lorada.decision.statistics import Common, mean_score
from lorada.runs.result import Prediction, RowsMetrics, RunResult

ROWS = 200
TINY = 1e-9  # relative; two ways to compute one number


def result_of(metrics):
    """The result of a run with these metrics on the held-out rows."""
    return RunResult(labels=[], form="text", history=[], metrics={HELD_OUT: metrics})


def prediction_of(row):
    """A line without an answer, for a row's name and number."""
    return Prediction(rows=row[0], row=row[1], answer=None, loss=None)


def results_of(
    scores: dict[str, np.ndarray], *, metric="exact_match", baselines=None, groups=None
) -> Results:
    """A comparison of methods with these scores (seeds × rows); the first trains the most."""
    candidates = []
    for index, (name, found) in enumerate(scores.items()):
        rows = [(HELD_OUT, number + 1) for number in range(found.shape[1])]
        runs = [
            ScoredRun(
                f"runs/{name}/9/seed{seed}", seed,
                result_of({"n": len(rows), metric: float(line.mean())}),
                {row: prediction_of(row) for row in rows},
                dict(zip(rows, line.tolist(), strict=True)),
            )
            for seed, line in enumerate(found, 1)
        ]  # fmt: skip
        one = Candidate(name, {}, trainable=9000 - 1000 * index)
        candidates.append(
            CandidateResult(name, one, runs=runs, scores=found, losses=found * np.nan)
        )
    seeds = list(range(1, 1 + max(map(len, scores.values()))))
    asked = Comparison(recipe={}, methods=list(scores), seeds=seeds)
    sizes = [one.candidate for one in candidates]
    rows_to_learn = TrainingRows("train.jsonl", 0, "")
    plan = ComparisonPlan(sizes, 0, 8, 8, rows_to_learn, {}, 0, None, versions={}, hardware={})
    untrained = TypeAdapter(dict[str, Untrained]).validate_python(baselines or {})
    return Results(Path("c"), asked, plan, candidates, rows, groups, untrained)


def planned(results, **changes):
    """The same with these fields of its plan."""
    return dataclasses.replace(results, plan=dataclasses.replace(results.plan, **changes))


def changed(results, label, **changes):
    """Change the record of one candidate; of a field of its plan, the plan."""
    (place,) = (i for i, one in enumerate(results.candidates) if one.label == label)
    one = results.candidates[place]
    plan = {name: changes.pop(name) for name in list(changes) if hasattr(one.candidate, name)}
    candidate = dataclasses.replace(one.candidate, **plan)
    results.candidates[place] = dataclasses.replace(one, candidate=candidate, **changes)
    return results


def raised(scores: np.ndarray, share: float) -> np.ndarray:
    """The scores with a share of the wrong rows put right, the same in all seeds."""
    right = np.random.default_rng(1).random(scores.shape[1]) < share
    return np.where(right, 100.0, scores)


def alike(methods=3, seeds=3, rows=ROWS):
    random = np.random.default_rng(11)
    names = ("lora", "dora", "ia3")[:methods]
    return dict(
        zip(names, made_up_scores(random, seeds, rows, methods=methods, run=0.05), strict=True)
    )


def right_rows(count, rows=40, seeds=3):
    """Scores of runs that get the first ``count`` rows right."""
    return np.stack([100.0 * (np.arange(rows) < count)] * seeds)


def commonest(scores, metric="exact_match"):
    """The baseline whose answer is the commonest one, with these scores by row."""
    return {"commonest": {"answer": "Yes", "row_scores": {metric: scores.tolist()}}}


ENDS = ("score", "low", "high")


def shown_fields(summary):
    """What a report shows of each candidate, then of each baseline."""
    lines = [line.plain() for line in summary.lines]
    return [*lines, *(dataclasses.asdict(baseline) for baseline in summary.baselines)]


HALF_WRONG = commonest(right_rows(20, rows=ROWS)[0])


@pytest.mark.parametrize(("margin", "taken"), [(None, "dora"), (30.0, "ia3")])
def test_the_verdict_is_that_of_decide_with_costs_baselines_and_margin(margin, taken):
    scores = alike()
    scores["dora"] = raised(scores["dora"], 0.4)
    results = results_of(scores, baselines=HALF_WRONG)
    changed(results, "ia3", trainable=2000)
    results.asked.margin = margin
    summary = summarize(results)
    sizes = {line.label: {"parameters": line.result.trainable} for line in summary.lines}
    expected = lorada.decide(
        scores, sizes, margin,
        baselines={"the commonest answer": HALF_WRONG["commonest"]["row_scores"]["exact_match"]},
    )  # fmt: skip
    assert (summary.best, summary.verdict) == (taken, expected.sentence)
    for line in summary.lines:
        assert line.decided.expected_loss == expected.expected_loss[line.label]
        assert (line.decided.low, line.decided.high) == expected.intervals[line.label]
    assert summarize(results, margin=0.0).best == "dora"


def test_the_margin_that_was_asked_for_is_of_the_metric_that_was_asked_for():
    results = planned(results_of(alike()), metric=ChosenMetric("exact_match", ""))
    results.asked.margin = 30.0
    assert summarize(dataclasses.replace(results, metric="exact_match")).margin == 30.0
    losses = {name: -each / 100 for name, each in alike().items()}
    by_loss = planned(results_of(losses, metric="loss"), metric=results.plan.metric)
    by_loss.asked.margin = 30.0
    assert summarize(dataclasses.replace(by_loss, metric="loss")).margin < 0.03


def test_what_a_reader_has_to_know_of_rows_and_runs_is_said():
    results = planned(results_of(alike()), overlap=3)
    assert any("3 held-out rows can be learned by heart" in s for s in summarize(results).sentences)
    results.asked.until = 0.5
    cut_off = summarize(results)
    assert any("The comparison is not complete" in sentence for sentence in cut_off.sentences)
    assert cut_off.commands["go on with it"] == "lorada compare c --resume"
    ended = summarize(dataclasses.replace(results, baselines={"as_it_is": Untrained(reason="-")}))
    assert not any("not complete" in sentence for sentence in ended.sentences)


def test_rows_in_groups_are_tested_by_the_means_of_groups_of_one_size():
    scores = alike(rows=400)
    scores["dora"] = raised(scores["dora"], 0.3)
    base = right_rows(260, rows=400)[0]
    mean = {name: each.reshape(-1, 40, 10).mean(axis=2) for name, each in scores.items()}
    tens = results_of(scores, baselines=commonest(base), groups=list(np.arange(400) // 10))
    grouped, expected = summarize(tens), summarize(
        results_of(mean, baselines=commonest(base.reshape(40, 10).mean(axis=1)))
    )  # fmt: skip
    for one, other in zip(shown_fields(grouped), shown_fields(expected), strict=True):
        for name in ("score", "low", "high", "p_best", "letter", "expected_loss"):
            known = other.get(name)
            assert one.get(name) == (known if not isinstance(known, float)
                                     else pytest.approx(known, rel=1e-6))  # fmt: skip
    power = [each for each in grouped.sentences if "has a power of" in each]
    assert power == [each.replace("40 rows", "40 groups of 400 rows")
                     for each in expected.sentences if "has a power of" in each]  # fmt: skip


def test_runs_that_diverged_are_counted_in_the_verdict(made_up_summary):
    assert "1 of 3 runs of ia3+lora (0.2%) diverged" in made_up_summary.verdict


@pytest.mark.parametrize(
    ("methods", "rows", "enough", "words"),
    [
        (2, 5, 6, "With 5 rows no difference can be significant: it takes 6 rows or more."),
        (7, 9, 10, "it takes 10 rows or more."),
    ],
)
def test_rows_that_are_too_few_for_any_number_of_seeds_are_said(methods, rows, enough, words):
    for count in (rows, enough):
        scores = {f"m{i}": np.zeros((9, count)) for i in range(methods)}
        scores["m0"] += 100.0  # all right, where the others are all wrong
        summary = summarize(results_of(scores))
        told = {line.decided.letter for line in summary.lines} == {"a", "b"}
        every = (summary.verdict, *summary.sentences)
        said = [each for each in every if "no difference" in each]
        assert told == (count == enough)
        assert len(said) == (count == rows)
        assert all(words in each for each in said)
        assert not (said and any("has a power of" in each for each in summary.sentences))
        assert summary.best == "m0"  # and none of the others for what it costs


def add_own_metric(folder, name, factor):
    """Add a user's metric, a multiple of exact match, as ``lorada report --metric`` stores it."""
    for path in folder.glob("runs/*/*/*/predictions.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["metrics"][name] = factor * line["metrics"]["exact_match"]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    stored = json.loads((folder / "baselines.json").read_text())
    for one in stored.values():
        one["row_scores"][name] = [factor * score for score in one["row_scores"]["exact_match"]]
    (folder / "baselines.json").write_text(json.dumps(stored))


@pytest.mark.parametrize("factor", [1 / 100, 1])
def test_a_users_metric_of_0_and_1_is_read_as_decide_reads_it(tmp_path, factor):
    folder = write_made_up(tmp_path / "made up")
    add_own_metric(folder, "vals.py:right", factor)
    exact = summarize(read_comparison(folder, "exact_match"))
    own = summarize(read_comparison(folder, "vals.py:right"))
    assert own.verdict == exact.verdict
    assert own.margin == exact.margin
    assert own.scale == exact.scale
    for one, other in zip(shown_fields(own), shown_fields(exact), strict=True):
        assert [one[name] for name in ENDS] == [other[name] for name in ENDS]
    assert own.shown_rows.divided == exact.shown_rows.divided
    assert not any("vals.py" in sentence for sentence in own.sentences)


def test_a_users_metric_in_another_unit_has_no_margin_and_no_interval_of_a_share(tmp_path):
    folder = write_made_up(tmp_path / "made up")
    add_own_metric(folder, "vals.py:stars", 5 / 100)
    stored = json.loads((folder / "baselines.json").read_text())
    stored["commonest"]["row_scores"]["vals.py:stars"] = [0.0] * 200
    (folder / "baselines.json").write_text(json.dumps(stored))
    own = summarize(read_comparison(folder, "vals.py:stars"))
    assert own.margin is None
    assert own.best == own.lines[0].label
    assert (own.baselines[1].low, own.baselines[1].high) == (0, 0)
    assert f"Take {own.best} (measured " in own.verdict
    assert f"; expect {own.decision.expected_score:.4g}, " in own.verdict
    assert "no default in this unit: give what it may cost, such as" in own.verdict
    assert not any("vals.py" in sentence for sentence in own.sentences)


def test_how_many_runs_may_fail_though_none_has_is_said():
    said = summarize(results_of(alike())).sentences
    (three,) = (each for each in said if "without a failure" in each)
    assert three.startswith("3 runs of ")
    assert three.endswith("still allow up to 63 % of its runs to fail (95 % confidence).")
    (one,) = (e for e in summarize(results_of(alike(seeds=1))).sentences if "a failure" in e)
    assert "1 run of" in one
    assert "still allows up to 95 %" in one


def test_where_score_and_loss_name_different_winners_the_report_says_so():
    results = results_of(alike())
    best = summarize(results).lines[0].label
    by_loss = {"lora": 0.5, "dora": 0.5, "ia3": 0.5}
    for label, loss in by_loss.items():
        changed(results, label, losses=np.full((3, ROWS), loss))
    assert not any("The loss names" in each for each in summarize(results).sentences)
    other = next(label for label in by_loss if label != best)
    changed(results, other, losses=np.full((3, ROWS), 0.25))
    assert (
        f"The loss names another best method: {other} (0.250 nats, and {best} 0.500). "
        "`lorada report c --metric loss` compares by the loss."
    ) in summarize(results).sentences


def test_with_one_held_out_row_rows_are_missing_and_not_seeds():
    summary = summarize(results_of({"lora": np.full((3, 1), 100.0), "dora": np.zeros((3, 1))}))
    assert summary.verdict == (
        "lora has the highest score, 100.0%, but that may be chance: a test needs more held-out "
        "rows."
    )
    assert any(each.startswith("With 1 row no difference") for each in summary.sentences)


def with_result(results, **fields):
    """The comparison with these fields in the result of every run."""
    for candidate in results.candidates:
        candidate.runs[:] = [
            dataclasses.replace(run, result=run.result.model_copy(update=fields))
            for run in candidate.runs
        ]
    return results


def by_loss_without(folder, rows_without_loss):
    """The summary of a made-up comparison by the loss, which some rows do not have."""
    for path in folder.glob("runs/*/*/*/predictions.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines[:rows_without_loss]:
            line["loss"] = None
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return summarize(read_comparison(folder, "loss"))


def test_nothing_is_decided_by_the_loss_of_a_part_of_the_rows(tmp_path):
    folder = write_made_up(tmp_path / "made up", rows=30)
    assert by_loss_without(folder, 0).best
    summary = by_loss_without(folder, 11)
    assert summary.best == ""
    assert "but only 19 of 30 held-out rows have a loss" in summary.verdict
    assert summary.verdict.endswith("compare again with a larger max_length.")


def test_a_verdict_by_the_loss_says_how_exact_the_written_answers_are_and_how_many_were_cut(
    tmp_path,
):
    folder = write_made_up(tmp_path / "made up", rows=30)
    for path in folder.glob("runs/*/*/*/result.json"):
        result = json.loads(path.read_text())
        result["metrics"][HELD_OUT] |= {"exact_match": 12.5, "cut": 27, "max_new_tokens": 32}
        path.write_text(json.dumps(result))
    verdict = summarize(read_comparison(folder, "loss")).verdict
    assert "not the answers that are written; exact match of these is: " in verdict
    assert "lora (0.1%) 12.5 %" in verdict
    assert re.search(r"(\d+) of \d+ written answers were cut\.$", verdict)
    assert "written" not in summarize(read_comparison(folder)).verdict


def test_no_winner_is_crowned_where_nothing_was_learned():
    random = np.random.default_rng(15)
    names = ("lora", "dora", "ia3", "vera", "lmam", "lorada_la", "full")
    scores = {name: 100.0 * (random.random((3, 150)) < 0.51) for name in names}
    common = 100.0 * (random.random(150) < 0.5)
    results = results_of(scores, baselines={
        "commonest": {"answer": "Yes", "row_scores": {"exact_match": common.tolist()}},
    })  # fmt: skip
    summary = summarize(planned(results, steps=24))
    assert summary.lines[0].score > common.mean()
    assert summary.best == ""
    assert {"generate", "explore"} <= summary.commands.keys()  # to look at what it does
    assert not {"train", "export", "serve"} & summary.commands.keys()
    assert summary.verdict.startswith(
        "Do not tune yet: no method is shown to have learned at the tried rates ("
    )
    assert "is not significantly better than the commonest answer (4" in summary.verdict
    assert summary.verdict.endswith(
        "Compare again with more steps (max_steps=96), other learning rates (--rates) or more rows."
    )
    assert summary.baselines[1].answer == "Yes"


def tried(*points):
    """Trials of (choice, rate, factor of the map's rate), the first of which is the best."""
    return [
        Trial(choice, rate, factor, 5 * rate * factor, number=number, loss=1.0 + number)
        for number, (choice, rate, factor) in enumerate(points)
    ]


@pytest.mark.parametrize(
    ("trials", "at_edge"),
    [
        (tried((0, 2, 1), (0, 1, 1), (0, 3, 1), (0, 2, 0.5), (0, 2, 2)), False),
        (tried((0, 2, 0.5), (0, 1, 1), (0, 3, 1), (0, 2, 1), (0, 2, 2)), True),  # of the map
        (tried((0, 2, 1), (0, 1, 1), (0, 2, 0.5), (0, 2, 2)), True),
        (tried((1, 2, 1), (1, 1, 1), (1, 3, 1), (0, 9, 1)), False),  # others of another setting
        (tried((1, 9, 1), (0, 1, 1)), True),
    ],
)
def test_how_rates_were_chosen_is_said_and_one_at_an_end_of_those_tried(trials, at_edge):
    results = results_of(alike())
    best = trials[0]
    chosen = Search(best.rate, trials, best.choice, best.rate, best.map_factor, best.map_rate)
    results.candidates[0] = dataclasses.replace(results.candidates[0], search=chosen)
    said = summarize(results).sentences
    assert any("so another may be better: lora." in one for one in said) == at_edge
    assert any(one.startswith("Differences are those at the chosen") for one in said)


@pytest.mark.parametrize(
    ("rates", "said"), [([], "each method has its own default."), ([2e-3], "all train at 0.002.")]
)
def test_without_a_search_the_report_says_which_rates_were_taken(rates, said):
    results = results_of(alike())
    results.asked.rates, results.asked.trials = rates, 1
    assert f"No learning rate was searched: {said}" in summarize(results).sentences


def test_a_comparison_that_was_cut_off_says_how_it_goes_on_and_gives_no_winner(tmp_path):
    folder = write_made_up(tmp_path / "made up", rows=20)
    (folder / "failures.json").unlink()
    for path in sorted(folder.glob("runs/*/*"))[1:]:
        shutil.rmtree(path)
    shutil.rmtree(folder / "trials")
    summary = summarize(read_comparison(folder))
    assert summary.best == ""
    assert summary.verdict == "Too few runs are scored yet for a result."
    assert summary.commands == {"go on with it": f"lorada compare '{folder}' --resume"}
    assert "No search for a learning rate is finished yet." in summary.sentences


def test_baselines_on_other_rows_are_left_out():
    short = {"as_it_is": {"row_scores": {"exact_match": [100.0]}}}
    found = summarize(results_of(alike(), baselines=short)).baselines
    reasons = ["it has no score on these rows", "it is not scored yet"]
    assert [one.reason for one in found] == reasons


def test_nothing_finished_is_no_result(tmp_path):
    folder = write_made_up(tmp_path / "made up", rows=20)
    (folder / "runs").rename(tmp_path / "runs")
    summary = summarize(read_comparison(folder))
    assert summary.verdict == "Too few runs are scored yet for a result."
    assert summary.sentences[0].startswith("The comparison is not complete: 0 of 30 runs")
    assert summary.best == ""
    assert all(line.score is None and line.result.reason for line in summary.lines)


@pytest.mark.parametrize(
    ("metric", "unit"), [("loss", " nats"), ("perplexity", " nats"), ("mae", "")]
)
def test_losses_and_errors_are_shown_as_they_are_and_the_lowest_is_the_best(metric, unit):
    random = np.random.default_rng(13)
    scores = {name: -random.normal(mean, 0.1, (3, 30)) for name, mean in (("lora", 3), ("dora", 2))}
    by = "mae" if metric == "mae" else "loss"
    mean = commonest(np.full(30, 2.5), by)
    summary = summarize(results_of(scores, metric=metric, baselines=mean))
    best, worst = summary.lines
    assert (best.label, worst.label) == ("dora", "lora")
    low, high = best.decided.low, best.decided.high
    assert low < best.score < high < 2.5 == summary.baselines[1].score < worst.score
    assert summary.verdict.startswith("Take dora (expect ")
    assert f"{unit}, " in summary.verdict
    assert "lora is not shown to have learned at the tried rates" in summary.verdict
    assert "%" not in summary.verdict
    assert summary.shown_rows.divided == ()


def test_why_answers_are_scored_so_and_how_many_were_cut_is_said():
    results = results_of(alike(2))
    results = planned(results, metric=ChosenMetric("exact_match", "no response is long"))
    for run in results.candidates[1].runs[:2]:
        metrics = {"n": ROWS, "exact_match": 50.0, "cut": 6, "max_new_tokens": 53}
        run.result.metrics[HELD_OUT] = RowsMetrics(**metrics)
    said = summarize(dataclasses.replace(results, metric="exact_match")).sentences
    assert "Answers are scored by exact match, because no response is long." in said
    assert "Answers were cut before they had ended: dora 12 of 600 at 53 tokens." in said
    other = summarize(dataclasses.replace(results, metric="chrf")).sentences
    assert not any("because no response" in each for each in other)


def test_windows_that_share_tokens_are_not_tested():
    random = np.random.default_rng(13)
    scores = {"lora": -random.normal(3.0, 0.01, (3, 300))}
    scores["dora"] = scores["lora"] - 1
    summary = summarize(results_of(scores, metric="perplexity_2048"))
    decided = [line.decided for line in summary.lines]
    assert all(each.letter == "" and each.p_best is None for each in decided)
    assert "may be chance: a test needs windows that share no tokens" in summary.verdict


@pytest.mark.parametrize(
    ("metric", "by"), [("matthews", "accuracy"), ("macro_f1", "balanced accuracy")]
)
def test_a_metric_that_is_no_mean_over_rows_is_named(metric, by):
    metrics = {HELD_OUT: RowsMetrics(**{"n": ROWS, metric: 12.5, "accuracy": 1.0})}
    summary = summarize(with_result(results_of(alike()), metrics=metrics))
    assert (summary.metric, summary.lines[0].measured.value) == (metric, 12.5)
    said = f"Methods are compared by their mean {by} over rows, which is not {metric}."
    assert said in summary.sentences


def test_lines_are_sorted_and_have_each_number(made_up_folder, made_up_summary):
    scored = [line.score for line in made_up_summary.lines if line.score is not None]
    assert scored == sorted(scored, reverse=True)
    assert made_up_summary.lines[-1].label == "boft"
    assert made_up_summary.lines[-1].result.reason == "boft does not fit: 576 is no multiple of 5"
    line = next(line for line in made_up_summary.lines if line.label == "lora (0.1%)")
    result = json.loads((made_up_folder / "runs/lora/115200/seed1/result.json").read_text())
    mine = next(c for c in read_comparison(made_up_folder).candidates if c.label == line.label)
    common = Common.of([c.scores for c in read_comparison(made_up_folder).candidates
                        if len(c.runs) > 1])  # fmt: skip
    ends = line.decided.low, line.decided.high
    assert ends == pytest.approx(mean_score(mine.scores, common).interval())
    assert line.score == pytest.approx(mine.scores.mean(), rel=TINY)
    measured = line.measured
    assert measured.value == pytest.approx(line.score, rel=TINY)
    assert measured.seconds_per_step == result["seconds_per_step"]  # the other seeds took longer
    assert measured.peak_memory_gib == result["peak_memory_bytes"] / 2**30
    plain = line.plain()
    assert (plain["seeds"], plain["budget"], plain["above"]) == ([1, 2, 3], "0.1%", False)
    assert measured.rates == (2e-4,)


def test_sentences_say_what_limits_the_verdict(made_up_summary):
    said = " ".join(made_up_summary.sentences)
    assert "28 of 30 runs are scored" in said
    assert (
        "With 60 rows and 2 to 3 seeds the test of two candidates has a power of about 72" in said
    )
    assert " with the correction for all 45 pairs." in said


def test_rows_that_divide_the_candidates_most_come_first(made_up_folder, made_up_summary):
    sizes = [min(len(one.right), len(one.wrong)) for one in made_up_summary.shown_rows.divided]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < len(sizes) <= 50
    first = made_up_summary.shown_rows.divided[0]
    assert first.rows == Path(HELD_OUT).name
    for candidate in read_comparison(made_up_folder).candidates:
        if candidate.runs:
            right = candidate.scores[:, first.row - 1].mean() > 50
            assert (candidate.label in first.right) == right
            assert (candidate.label in first.wrong) != right


def test_texts_of_rows_are_shown_if_they_are_stored(made_up_folder):
    results = read_comparison(made_up_folder)
    assert summarize(results).shown_rows.divided[0].text is None
    run = next(c for c in results.candidates if c.runs).runs[0]
    for row in results.rows:
        texts = {"text": f"question {row[1]}", "right": "Yes"}
        run.predictions[row] = run.predictions[row].model_copy(update=texts)
    first = summarize(results).shown_rows.divided[0]
    assert (first.text, first.answer) == (f"question {first.row}", "Yes")


def test_the_commands_are_commands_of_lorada(made_up_summary):
    from lorada import cli

    commands = typer.main.get_command(cli.app).commands
    assert list(made_up_summary.commands) == ["train", "export", "serve", "explore"]
    for command in made_up_summary.commands.values():
        program, name, *rest = shlex.split(command)
        assert program == "lorada"
        commands[name].make_context(name, rest).close()  # refuses unknown options
    recipe = Path(shlex.split(made_up_summary.commands["train"])[2])
    assert recipe.is_file()
    assert recipe.parts[-4] in made_up_summary.best


@pytest.mark.parametrize(
    ("form", "uses"),
    [("label", ["predict", "serve"]), ("score", ["predict", "serve"]), ("text", ["serve"])],
)
def test_the_commands_are_those_that_the_form_of_the_rows_allows(form, uses):
    summary = summarize(with_result(results_of(alike()), form=form))
    assert list(summary.commands) == ["train", "export", *uses, "explore"]


def test_methods_that_all_score_the_same_are_different_by_their_losses():
    zeros = {name: np.zeros((3, 30)) for name in ("lora", "dora")}
    results = results_of(zeros, baselines=commonest(np.full(30, 100.0)))
    assert "for all of them" not in summarize(with_result(results, form="label")).verdict
    with_result(results, form="prompt")
    said = "exact match is 0.0% for all of them"
    assert summarize(results).verdict == f"{said}: their losses are equal too."
    losses = [np.full((3, 30), loss) for loss in (2.5, 0.1)]
    for name, loss in zip(zeros, losses, strict=True):
        changed(results, name, losses=loss)
    summary = summarize(results)
    assert summary.verdict == f"{said}: their losses differ, `lorada report c --metric loss`"
    assert next(iter(summary.commands.values())) == "lorada report c --metric loss"
    assert summary.best == ""


def test_rows_that_are_cut_stand_in_the_report_and_in_the_advice():
    lengths = RowLengths(150, 20, 300, 1531, 512, None, 8192, 26, 3, 82, 0)
    wrong = {name: np.zeros((3, ROWS)) for name in ("lora", "ia3")}
    results = planned(results_of(wrong, baselines=HALF_WRONG), train_lengths=lengths, steps=24)
    summary = summarize(results)
    said = (
        "Of 150 training rows 26 are cut to max_length=512, 3 of them in an answer, 82 are left "
        "out, as max_length=512 leaves nothing to learn; the longest has 1,531 tokens: "
        "max_length=1531 takes every row whole."
    )
    assert said in summary.sentences
    assert said in page(summary)
    assert "Compare again with whole rows (max_length=1531), more steps" in summary.verdict
    whole = dataclasses.replace(lengths, max_length=2048, cut=0, answers_cut=0, dropped=0)
    summary = summarize(planned(results, train_lengths=whole))
    assert not any("training rows" in one for one in summary.sentences)
    assert "whole rows" not in summary.verdict


def test_the_unit_of_a_users_metric_can_be_named_and_only_of_such_a_metric(tmp_path):
    folder = write_made_up(tmp_path / "made up")
    add_own_metric(folder, "vals.py:stars", 5 / 100)
    named = summarize(read_comparison(folder, "vals.py:stars", "stars"))
    assert f"; expect {named.decision.expected_score:.4g} stars, " in named.verdict
    assert (named.scale.unit, named.scale.behind) == ("stars", " stars")
    assert named.margin is None
    percent = summarize(read_comparison(folder, "vals.py:stars", "%"))
    assert percent.margin == 1.0
    with pytest.raises(ValueError, match="--unit stars is for a function of your own"):
        read_comparison(folder, "exact_match", "stars")


def test_what_a_prompt_does_as_well_is_looked_at_and_not_trained_again():
    scores = {"lora": 100.0 * (np.random.default_rng(1).random((3, 60)) < 0.7)}
    rows = 60
    guess = {"row_scores": {"exact_match": [0.0] * rows}}
    prompt = {"row_scores": {"exact_match": [100.0] * rows}, "title": "8 examples in the prompt"}
    summaries = {}
    for worth_it, baselines in (
        (True, {"commonest": guess}),
        (False, {"commonest": guess, "shots8": prompt}),
    ):
        summaries[worth_it] = summarize(results_of(scores, baselines=baselines))
        assert summaries[worth_it].best == "lora"
        assert ("train" in summaries[worth_it].commands) is worth_it
    assert summaries[False].verdict.startswith("Do not tune yet: ")
    assert "What next? Use" in re.sub(r"\s+", " ", page(summaries[True]))
    assert "What next? Use" not in re.sub(r"\s+", " ", page(summaries[False]))


def test_the_interval_of_a_share_without_training_ends_at_0_and_100():
    scores = {"lora": 100.0 * (np.random.default_rng(1).random((3, 60)) < 0.7)}
    rows = 60
    nearly = [100.0] * (rows - 1) + [0.0]
    seldom = [0.0] * (rows - 1) + [100.0]
    baselines = {
        "commonest": {"row_scores": {"exact_match": seldom}},
        "answers": {"row_scores": {"exact_match": nearly}, "title": "the answers of gpt.jsonl"},
    }
    shown = {one.name: one for one in summarize(results_of(scores, baselines=baselines)).baselines}
    assert shown["the answers of gpt.jsonl"].high == 100.0
    assert shown["the answers of gpt.jsonl"].low < 100.0 - 100 / rows
    assert shown["the commonest answer"].low == 0.0
