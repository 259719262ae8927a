"""Rows that no method gets right: which are found, and in which order."""

import dataclasses
import json

import numpy as np
import pytest
from confident_learning import confident_order, precision_at
from made_up_comparison import write_made_up
from made_up_rows import LABELS, made_up_answers, write_classifiers

from lorada.compare.held_out_rows import AskedRow, read_held_out, text_of
from lorada.compare.read_results import CandidateResult, Results, ScoredRun, read_comparison
from lorada.compare.report.shown_rows import ShownRows
from lorada.compare.report.write_report import write_report
from lorada.compare.row_findings import RowFinding, find_rows
from lorada.compare.rows_summary import rows_csv, summarize_rows
from lorada.compare.spec import Comparison
from lorada.compare.stored_plan import Candidate, ComparisonPlan, TrainingRows
from lorada.data.rows.row_content import right_answer
from lorada.decision.run_variances import TINY
from lorada.runs.result import Prediction, RunResult

NAME = "test.jsonl"


def results_of(answers: dict[str, list[list]], right: list, losses=None, form="prompt") -> Results:
    """A comparison of methods with these answers (seeds × rows) to rows with these right ones."""
    keys = [(NAME, number) for number in range(1, len(right) + 1)]
    candidates = []
    for index, (name, of_runs) in enumerate(answers.items()):
        runs, tables = [], []
        for seed, of_run in enumerate(of_runs, 1):
            table = [100.0 * (answer == one) for answer, one in zip(of_run, right, strict=True)]
            lines = {
                key: Prediction(
                    rows=NAME, row=key[1], answer=answer, loss=None, metrics={"exact_match": score}
                )
                for key, answer, score in zip(keys, of_run, table, strict=True)
            }
            result = RunResult(labels=[], form=form, history=[], metrics={})
            scores = dict(zip(keys, table, strict=True))
            runs.append(ScoredRun(f"runs/{name}/{seed}", seed, result, lines, scores))
            tables.append(table)
        scores = np.array(tables)
        stored = scores * np.nan if losses is None else np.array(losses[name])
        candidate = Candidate(name, {}, trainable=9 - index)
        candidates.append(CandidateResult(name, candidate, runs=runs, scores=scores, losses=stored))
    plan = ComparisonPlan(
        [one.candidate for one in candidates], 9, 8, 0, TrainingRows("", 0, ""), {}, 0, None,
        versions={}, hardware={},
    )  # fmt: skip
    asked = Comparison(recipe={}, methods=list(answers), seeds=[1, 2])
    return Results(None, asked, plan, candidates, keys)


def asked_rows(right: list) -> dict:
    return {
        (NAME, number): AskedRow(f"question {number}", one) for number, one in enumerate(right, 1)
    }


def test_rows_are_found_by_what_runs_of_all_methods_make_of_them():
    right = ["yes"] * 6
    results = results_of({
        "lora": [["no ", "no", "maybe", "yes", "no", "yes"],
                 ["no", "so", "yes", "yes", "no", "yes"]],
        "ia3": [["no", "no", "yes", "no", "yes", "yes"], [" no", "no", "no", "no", "yes", "yes"]],
    }, right)  # fmt: skip
    found = find_rows(results, asked_rows(right))
    by_row = {row.row: row for row in found.rows}
    assert list(by_row) == [1, 2, 4, 5, 3], "those that all runs answer alike come first"
    assert by_row[1].findings == ("wrong everywhere", "same wrong answer")
    assert (by_row[1].wrong_answer, by_row[1].same_wrong) == ("no", 1.0)
    assert (by_row[2].same_wrong, by_row[2].wrong_runs) == (0.75, 4)
    assert by_row[3].findings == ("unstable",)
    assert by_row[4].findings == by_row[5].findings == ("methods differ",)
    assert by_row[4].disagreement == 0.5
    assert (found.scored, found.runs, found.methods) == (6, 4, 2)


def test_within_rows_that_all_runs_answer_alike_the_probability_of_the_right_answer_decides():
    right = ["yes"] * 3
    answers = {"lora": [["no"] * 3] * 2}
    results = results_of(answers, right, {"lora": [[1.0, 3.0, 2.0], [1.0, 3.0, 2.5]]})
    found = find_rows(results, asked_rows(right))
    assert [row.row for row in found.rows] == [2, 3, 1]
    assert found.rows[0].probability == pytest.approx(np.exp(-3.0), abs=TINY)
    assert len(find_rows(results, asked_rows(right), most=2).rows) == 2


def test_where_classes_have_a_probability_one_poor_run_does_not_decide_the_order():
    right = ["yes"] * 3
    answers = {"lora": [["no", "no", "yes"]] * 3, "ia3": [["no", "yes", "no"]]}
    sure, unsure = [0.8, 5.0, 0.1], [0.8, 0.6, 0.8]
    losses = {"lora": [sure] * 3, "ia3": [unsure]}
    results = results_of(answers, right, losses, form="label")
    found = find_rows(results, asked_rows(right))
    assert [row.row for row in found.rows] == [2, 1, 3]
    as_texts = results_of(answers, right, losses)
    assert [row.row for row in find_rows(as_texts, asked_rows(right)).rows] == [1, 2, 3]


def test_answers_that_are_neither_right_nor_wrong_give_no_list():
    results = results_of({"lora": [["a", "b"], ["a", "b"]]}, ["a", "b"])
    summaries = dataclasses.replace(
        results.candidates[0], scores=np.array([[31.0, 55.5], [30.0, 56.0]])
    )
    for run in summaries.runs:
        for key, line in run.predictions.items():
            run.predictions[key] = line.model_copy(update={"metrics": {"rougeL": 40.0}})
    results = dataclasses.replace(results, candidates=[summaries])
    assert find_rows(results, asked_rows(["a", "b"])) is None


def test_flipped_labels_are_on_top_as_often_as_confident_learning_has_them(tmp_path):
    ours, confident, chance = [], [], []
    for draw in range(5):
        answers = made_up_answers(np.random.default_rng(draw), flipped=0.08, clear=1.5)
        folder = write_classifiers(tmp_path / str(draw), answers)
        results = read_comparison(folder)
        found = find_rows(results, read_held_out(results))
        order = np.array([row.row - 1 for row in found.rows])
        of_one = answers.probabilities.mean(axis=(0, 1))
        other = confident_order(np.stack([1 - of_one, of_one], axis=1), answers.labels)
        ours.append(precision_at(order, answers.flipped, 20))
        confident.append(precision_at(other, answers.flipped, 20))
        chance.append(answers.flipped.mean())
    assert np.mean(ours) > 5 * np.mean(chance)
    assert np.mean(ours) > np.mean(confident) - 0.05


def test_texts_and_right_answers_are_read_again_from_files_that_are_as_they_were(tmp_path):
    answers = made_up_answers(np.random.default_rng(1), rows=60)
    folder = write_classifiers(tmp_path, answers)
    rows = read_held_out(read_comparison(folder))
    (key, first), *_ = rows.items()
    assert key == (str(tmp_path / "test.jsonl"), 1)
    assert first.text == "Sentence 0 says this"
    assert first.right == LABELS[answers.labels[0]]
    assert first.fields["source"] == "book"
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    changed = json.loads(lines[3]) | {"text": "another"}
    (tmp_path / "test.jsonl").write_text("\n".join([*lines[:3], json.dumps(changed), *lines[4:]]))
    with pytest.raises(ValueError, match=r"are not as they were .*put the files back"):
        read_held_out(read_comparison(folder))


def test_texts_that_were_stored_need_no_file(tmp_path):
    answers = made_up_answers(np.random.default_rng(1), rows=60)
    folder = write_classifiers(tmp_path, answers, with_text=True)
    (tmp_path / "test.jsonl").unlink()
    summary = summarize_rows(read_comparison(folder))
    assert {row.right for row in summary.findings.rows} <= set(LABELS)
    with pytest.raises(ValueError, match="are not as they were"):
        summarize_rows(read_comparison(folder), ["source"])


def test_plain_text_and_comparisons_without_runs_are_refused_in_words(tmp_path):
    plain = write_made_up(tmp_path / "plain")
    with pytest.raises(ValueError, match="plain text, which has no right answer"):
        summarize_rows(read_comparison(plain))
    folder = write_classifiers(tmp_path, made_up_answers(np.random.default_rng(1), rows=60))
    for path in folder.glob("runs/*/*/*/predictions.jsonl"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no finished run .*--resume"):
        summarize_rows(read_comparison(folder))


def test_the_table_to_relabel_from_opens_in_a_spreadsheet_without_running_anything():
    right = ["=1+1", "yes"]
    results = results_of({"lora": [["no", "=HYPERLINK(1)"], ["no", "=HYPERLINK(1)"]]}, right)
    found = find_rows(results, asked_rows(right))
    table = rows_csv(found)
    assert table.startswith("\ufeffrow,text,right_answer,commonest_wrong_answer,share_of_runs")
    assert "1,question 1,'=1+1,no,1.0,2,2,,0.0,test.jsonl" in table
    assert "'=HYPERLINK(1)" in table


@pytest.mark.parametrize(
    ("form", "row", "text", "right"),
    [
        ("label", {"text": "a", "text_pair": "b", "label": 1}, "a\nb", "1"),
        ("labels", {"text": "a", "labels": ["x"]}, "a", ["x"]),
        ("score", {"text": "a", "score": "2"}, "a", 2.0),
        ("prompt", {"prompt": "p", "response": "r"}, "p", "r"),
        ("choice", {"prompt": "p", "candidates": ["x", "y"], "answer": 1}, "p\n0: x\n1: y", 1),
        (
            "messages",
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]},
            "user: q",
            "r",
        ),
    ],
)
def test_the_text_and_the_right_answer_of_a_row_of_each_form(form, row, text, right):
    assert (text_of(row, form), right_answer(row, form)) == (text, right)


def test_where_nearly_all_rows_are_wrong_no_label_is_called_doubtful(tmp_path):
    answers = made_up_answers(np.random.default_rng(1), rows=60, flipped=0.9, clear=4.0)
    summary = summarize_rows(read_comparison(write_classifiers(tmp_path, answers)))
    assert "what learned so little says little of labels" in summary.sentences[0]
    assert "look at these labels" not in summary.sentences[0]


@pytest.mark.parametrize(
    ("with_text", "on_page", "in_json"),
    [(None, True, False), (True, True, True), (False, False, False)],
)
def test_the_page_has_the_texts_of_rows_and_what_is_handed_on_has_them_if_asked(
    tmp_path, with_text, on_page, in_json
):
    answers = made_up_answers(np.random.default_rng(3), clear=2.5)
    # Answers are stored without texts: they are read from the file once more.
    folder = write_classifiers(tmp_path, answers)
    summary, (page, stored) = write_report(folder, with_text=with_text)
    assert len(summary.shown_rows.wrong) == 10
    assert all(answers.flipped[row.row - 1] for row in summary.shown_rows.wrong)
    html = page.read_text()
    parts = ("What no method gets right", "What changes with the seed", "Where candidates disagree")
    places = [html.index(f">{part}<") for part in parts]
    assert places == sorted(places)
    wrong = {row.row for row in summary.shown_rows.wrong}
    assert summary.shown_rows.unstable
    assert not wrong & {row.row for row in summary.shown_rows.unstable}
    text = f"Sentence {summary.shown_rows.wrong[0].row - 1} says this"
    assert (text in html) == on_page
    assert (text in stored.read_text()) == in_json
    assert ("lorada report FOLDER --no-text" in html) == on_page
    # The rows have changed since: the page is written all the same, and says so.
    held_out = tmp_path / "test.jsonl"
    held_out.write_text("\n".join(reversed(held_out.read_text().splitlines())) + "\n")
    _, (page, _) = write_report(folder, with_text=with_text)
    assert "Sentence" not in page.read_text()
    assert ("has other rows now" in page.read_text()) == on_page


def test_free_answers_are_left_out_where_texts_are():
    row = RowFinding("rows", 1, "asked", "right", "Anna lives here", 1.0, 3, 3, None, 0.0, ())
    rows = ShownRows(wrong=(row,), unstable=(row,), answers_are_texts=True)
    for shown in (rows.for_json(), rows.without_texts()):
        for one in (*shown.wrong, *shown.unstable):
            assert (one.text, one.right, one.wrong_answer) == ("", "", "")
    classes = dataclasses.replace(rows, answers_are_texts=False).for_json()
    assert classes.wrong[0].wrong_answer == "Anna lives here"
    assert dataclasses.replace(rows, texts_in_json=True).for_json().wrong == (row,)
