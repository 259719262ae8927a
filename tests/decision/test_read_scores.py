"""Scores of other trainers, read from a file."""

import json
import sys

import numpy as np
import pytest
from programs import printed

from lorada.data.files.read_rows import read_rows
from lorada.decision.read_scores import baseline_of, read_costs, read_scores

HEAD = "method,seed,row,score\n"


def scores_in(path):
    """The scores of a file, as ``lorada decide`` reads them."""
    return read_scores(read_rows(path), str(path))


def written(folder, text):
    path = folder / "scores.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_in_any_order_become_seeds_times_rows(tmp_path):
    text = (
        "row,score,method,seed,group\na,1,lora,10,p\nb,0,lora,2,p\nb,0.5,lora,10,p\na,0,lora,2,p\n"
    )
    found = scores_in(written(tmp_path, text))
    assert found.seeds == {"lora": ("10", "2")}
    assert np.array_equal(found.scores["lora"], [[1, 0.5], [0, 0]])
    assert found.groups == ("p", "p")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "method;seed;row;score\nlora;1;a;1\nlora;1;b;\n"),
        ("a.tsv", "method\tseed\trow\tscore\nlora\t1\ta\t1\nlora\t1\tb\tinf\n"),
        (
            "a.jsonl",
            '{"method": "lora", "seed": 1, "row": "a", "score": 1}\n'
            '{"method": "lora", "seed": 1, "row": "b", "score": null}\n',
        ),
    ],
)
def test_a_table_may_be_any_that_a_training_takes(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="lora, seed 1, has no score of row b"):
        scores_in(tmp_path / name)


def test_names_of_columns_may_be_in_capitals_and_blanks_around_cells_do_not_count(tmp_path):
    text = "Method, SEED ,Row,Score\nlora, 1,a, 1\nlora,1 ,b,0\n"
    found = scores_in(written(tmp_path, text))
    assert found.seeds == {"lora": ("1",)}
    assert np.array_equal(found.scores["lora"], [[1, 0]])


def test_a_baseline_is_the_mean_of_its_runs_that_have_scores():
    runs = np.array([[0.0, 1.0], [1.0, 1.0], [np.nan, np.nan]])
    assert np.array_equal(baseline_of("guess", runs), [0.5, 1.0])
    with pytest.raises(ValueError, match="--baseline guess has no score"):
        baseline_of("guess", runs[2:])


def test_an_infinite_score_is_none(tmp_path):
    found = scores_in(
        written(tmp_path, f"{HEAD}lora,1,a,inf\nlora,1,b,-Infinity\nlora,2,a,1\nlora,2,b,0\n")
    )
    assert np.array_equal(found.scores["lora"], [[np.nan, np.nan], [1, 0]], equal_nan=True)


def test_true_and_false_are_right_and_wrong(tmp_path):
    found = scores_in(written(tmp_path, f"{HEAD}lora,1,a,True\nlora,1,b,false\n"))
    assert np.array_equal(found.scores["lora"], [[1, 0]])


def test_a_run_without_scores_has_diverged(tmp_path):
    text = f"{HEAD}lora,1,a,1\nlora,1,b,0\nlora,2,a,nan\nlora,2,b,\nia3,1,a,1\nia3,1,b,1\n"
    found = scores_in(written(tmp_path, text))
    assert np.isnan(found.scores["lora"][1]).all()
    assert found.groups is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method,seed,score\nlora,1,1\n", "has no column row, but method, seed, score: a table"),
        ("method,seed,score\nlora,1,1\n", r"score \(of each row, not of a whole run\)"),
        ("method,row,seed,score,Score\na,1,1,1,1\n", "two columns of one name"),
        (HEAD, "has no rows"),
        (f"{HEAD}lora,1,a,1\nlora,1,a,0\n", "row 2, has a score that is there already"),
        (f"{HEAD}lora,1,a,good\n", "row 1, has a score that is no number"),
        (f"{HEAD}lora,,a,1\n", "row 1, needs a method, a seed and a row"),
        (
            f"{HEAD}lora,1,a,1\nlora,1,b,1\nlora,1,c,1\nia3,1,a,1\n",
            "ia3, seed 1, has no score of row b and of 1 more. Give every run a score of all rows",
        ),
        ("method,seed,row,score,group\nlora,1,a,1,x\nlora,1,b,1,\n", "row 2, has no group, and"),
        (
            "method,seed,row,score,group\nlora,1,a,1,x\nlora,2,a,1,y\n",
            "row 2, has another group than before",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        scores_in(written(tmp_path, text))


def test_a_column_of_groups_without_any_is_none(tmp_path):
    text = "method,seed,row,score,group\nlora,1,a,1,\nlora,1,b,0,\n"
    assert scores_in(written(tmp_path, text)).groups is None


def test_costs_are_yaml_or_json(tmp_path):
    path = tmp_path / "costs"
    for text in ("lora: {parameters: 100}", '{"lora": {"parameters": 100}}'):
        path.write_text(text, encoding="utf-8")
        assert read_costs(path) == {"lora": {"parameters": 100}}
    path.write_text(json.dumps({"lora": {"seconds": 5e-05}}), encoding="utf-8")
    assert read_costs(path) == {"lora": {"seconds": 5e-05}}
    for text in ("[1, 2]", "lora: 100", "a: b: c"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="costs"):
            read_costs(path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_costs(tmp_path / "nothing")


def test_a_decision_needs_no_torch_transformers_or_peft():
    code = """
import sys, lorada
from lorada import decide
from lorada.decision.read_scores import read_scores
scores = {name: [[1, 0, 1, 1], [1, 0, 1, quality]] for name, quality in (("lora", 1), ("ia3", 0))}
found = lorada.decide(scores, {"lora": {"parameters": 9}, "ia3": {"parameters": 3}})
assert found == decide(scores, {"lora": {"parameters": 9}, "ia3": {"parameters": 3}})
table = [{"method": "lora", "seed": 1, "row": row, "score": row % 2} for row in range(9)]
assert decide(read_scores(table, "mine").scores).pick == "lora"
print(sorted({"torch", "transformers", "peft", "datasets"} & sys.modules.keys()))
print(sorted({name.split(".")[1] for name in sys.modules if name.startswith("lorada.")}))
"""
    assert printed(sys.executable, "-c", code).splitlines() == ["[]", "['decision', 'support']"]
