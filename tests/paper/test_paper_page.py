"""The page of a table: means and spreads beside the paper, and what decides if they compare."""

import pytest
from table_rows import SMALL

from lorada.paper import table_lines
from lorada.paper import table_page as pages
from lorada.paper.table_lines import published_line
from lorada.paper.table_page import Page
from lorada.paper.table_spec import PaperTable, load_table
from lorada.runs.result import RunResult

TABLE = {
    "table": 5, "title": "T", "tasks": ["rte", "sst2", "mrpc"], "train": "each", "paper": {},
    "local": {}, "rows": [{**dict.fromkeys(("key", "method"), row["key"]), "label": row["label"]}
                          for row in SMALL["rows"]],
}  # fmt: skip


def result(row: str = "lora", seed: int = 1, *, task="rte", recipe=None, **metrics) -> tuple:
    """A row of the table, and as much of a ``result.json`` as a page reads."""
    return row, {
        "seed": seed, "model": "tiny", "task": task, "labels": [], "form": "label", "history": [],
        "metrics": {task: {"n": 9, **(metrics or {"accuracy": 1.0}), "sha256": "a"}},
        "parameters": {"percent": 0.5}, "wall_time_s": 60.0,
        "recipe": {"task": task, **(recipe or {})},
        "hardware": {"accelerator": None, "cpu": "C", "cores": 4, "threads": 2},
        "versions": {"torch": "2", "transformers": "5", "peft": "0"},
    }  # fmt: skip


def page_of(*results: tuple, every: bool = False, **changes) -> Page:
    table = PaperTable(**{**TABLE, **changes})
    rows = {row.key: row for row in table.rows}
    stored = [(rows[key], RunResult.model_validate(fields)) for key, fields in results]
    return pages.make_page(table, "paper", stored, every=every)


def said(*results: tuple, **changes) -> str:
    return " ".join(page_of(*results, **changes).notes)


def test_a_page_of_results_that_do_not_say_their_machine_calls_it_unknown(printed):
    key, fields = result()
    assert "C, 4 cores, threads: 2; torch 2, transformers 5, peft 0." in said((key, fields))
    without_machine = {**fields, "hardware": None, "versions": {"torch": "2"}}
    notes = said((key, without_machine))
    assert "machine unknown; torch 2, transformers unknown, peft unknown." in notes
    notes = said((key, {**fields, "hardware": {"cpu": "C"}}))
    assert "C, unknown cores, threads: unknown; torch 2" in notes


@pytest.fixture
def printed(monkeypatch):
    """The published rows of these tests."""
    monkeypatch.setattr(table_lines, "load_published", lambda number: SMALL)


def test_a_page_has_means_spreads_and_every_seed(printed):
    page = page_of(*(
        result(seed=seed, task=task, accuracy=value)
        for task, values in {"rte": (70.0, 80.0), "sst2": (60.0, 90.0)}.items()
        for seed, value in enumerate(values)
    ))  # fmt: skip
    text = pages.format_markdown(page)
    # The spread of the mean is that of the seeds' means, 65 and 85.
    line = "| LoRA (0.5%) | ours | 0.500% | 75.0 ± 7.1 | 75.0 ± 21.2 | 75.0 ± 14.1 | 4.0 |"
    assert line in text
    assert "seeds 0, 1; ± is the standard deviation over seeds" in text
    assert page.lines[1].scores["rte"] == [70.0, 80.0]


def test_a_page_says_what_its_mean_is_of_and_has_none_where_a_column_is_missing(printed):
    one, other = result(), result("full", task="sst2")
    assert "mean: of rte, of seeds that have them all" in said(one)
    assert "±" not in said(one)
    page = page_of(one, other)
    assert "mean: of rte, sst2, of" in " ".join(page.notes)
    assert "| LoRA (0.5%) | ours | 0.500% | 1.0 | – | – | 1.0 |" in pages.format_markdown(page)
    assert "mean: of sst2, of" in said(one, other, mean=["sst2", "mrpc"])
    assert "mean" not in said(one, mean=[])
    assert page_of(one, mean=[]).columns == ["rte"]


def test_protocols_have_columns_of_their_own(printed):
    page = page_of(
        result(recipe={"protocol": "generate"}),
        result("full", recipe={"protocol": "likelihood"}, accuracy=2.0),
    )
    assert page.columns == [
        "rte (generate)", "mean (generate)", "rte (likelihood)", "mean (likelihood)"
    ]  # fmt: skip
    text = pages.format_markdown(page)
    assert "| LoRA (0.5%) | paper | 0.5% | 75.4 ± 0.2 | 75.4 | – | – | – |" in text
    assert "| Full | ours | 0.500% | – | – | 2.0 | 2.0 |" in text
    assert "protocol: generate, likelihood" in text


def test_rows_scored_on_different_data_do_not_share_a_page(printed):
    other = result(seed=2)
    other[1]["metrics"]["rte"]["sha256"] = "b"
    with pytest.raises(ValueError, match="rte was scored on other rows in lora, seed 2 than in"):
        page_of(result(), other)


def test_a_page_names_every_machine(printed):
    second = result(seed=2)
    second[1].update(hardware={"accelerator": "H100"})
    notes = said(result(), second)
    assert "C, 4 cores, threads: 2; torch 2" in notes
    assert "H100; torch 2" in notes


def test_only_rows_of_several_models_are_named_by_them():
    assert published_line(9, "lorada_la").label == "LoRaDA-LA"
    assert published_line(4, "chatgpt").label == "ChatGPT"
    table = load_table("table4")
    row = next(row for row in table.rows if row.key == "llama-7b/lorada_la")
    stored = RunResult.model_validate(result(task="boolq")[1])
    page = pages.make_page(table, "paper", [(row, stored)], every=False)
    labels = [line.label for line in page.lines if line.source != "rows"]
    assert labels == ["LLaMA-7B, LoRaDA-LA", "llama-7b/lorada_la"]


def test_rows_that_only_the_paper_has_come_first(printed):
    page = page_of(result(), every=True, rows=TABLE["rows"][:1])
    assert [(line.label, line.source) for line in page.lines] == [
        ("Full", "paper"), ("LoRA (0.5%)", "paper"), ("LoRA (0.5%)", "ours"),
        ("standard error by the number of rows", "rows"),
    ]  # fmt: skip
    assert "| Full | paper | 100% | 78.7 | 78.7 | – |" in pages.format_markdown(page)


@pytest.mark.first
def test_scores_stand_beside_guessing_and_the_standard_error_of_their_rows(printed):
    one = result(accuracy=54.5)
    one[1]["metrics"]["rte"]["n"] = 143
    one[1]["guessing"] = {"rte": {"accuracy": 53.1}}
    other = result(task="sst2", accuracy=80.0)
    other[1]["metrics"]["sst2"]["n"] = 400
    text = pages.format_markdown(page_of(one, other))
    assert "| the commonest answer alone | rows | – | 53.1 | – | – | – |" in text
    assert "| standard error by the number of rows | rows | – | 4.2 | 2.0 | 2.3 | – |" in text


def test_a_score_whose_variance_is_unknown_has_no_standard_error(printed):
    text = pages.format_markdown(page_of(result(f1=80.0)))
    assert "standard error" not in text
