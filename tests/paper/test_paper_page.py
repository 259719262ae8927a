"""The page of a table: means and spreads beside the paper, and what decides if they compare."""

import pytest
from table_rows import SMALL

from lorada.paper import table_page as pages
from lorada.paper.table_page import Page, RowResults, paper_page, published_line


def result(seed: int, *, task: str = "rte", recipe: dict | None = None, **metrics) -> dict:
    """As much of a ``result.json`` as a page reads."""
    return {
        "seed": seed, "model": "tiny", "metrics": {task: {"n": 9, **metrics, "sha256": "a"}},
        "parameters": {"percent": 0.5}, "wall_time_s": 60.0, "recipe": recipe or {},
        "hardware": {"accelerator": None, "cpu": "C", "cores": 4, "threads": 2},
        "versions": {"torch": "2", "transformers": "5", "peft": "0"},
    }  # fmt: skip


LABELS = {row["key"]: row["label"] for row in SMALL["rows"]}


def row_of(key: str, *results: dict) -> RowResults:
    """The results of a published row, or one made-up result."""
    return RowResults(key, LABELS[key], list(results) or [result(1, accuracy=1.0)])


def page_of(*rows: RowResults, columns=("rte",), **options) -> Page:
    where = {name: (name.partition("_")[0], None) for name in columns}
    settings = {"mean": None, "digits": 1, **options}
    return paper_page(5, "T", rows, where, **settings)


def said(*rows: RowResults, **options) -> str:
    return " ".join(page_of(*rows, **options).notes)


@pytest.fixture
def printed(monkeypatch):
    """The published rows of these tests."""
    monkeypatch.setattr(pages, "published", lambda number: SMALL)


def test_a_page_has_means_spreads_and_every_seed(printed):
    both = [
        result(seed, task=task, accuracy=value)
        for task, values in {"rte": (70.0, 80.0), "sst2": (60.0, 90.0)}.items()
        for seed, value in enumerate(values)
    ]
    page = page_of(RowResults("lora", "LoRA_1", both), columns=("rte", "sst2"))
    text = pages.markdown(page)
    # The spread of the mean is that of the seeds' means, 65 and 85.
    assert "| LoRA_1 | ours | 0.500% | 75.0 ± 7.1 | 75.0 ± 21.2 | 75.0 ± 14.1 | 4.0 |" in text
    assert "seeds 0, 1; ± is the standard deviation over seeds" in text
    assert "rte,75.0,7.07106781" in pages.comma_separated(page)
    assert "mean,75.0,14.1421356" in pages.comma_separated(page)
    assert "70.0000 80.0000" in pages.comma_separated(page)
    assert r"LoRA\_1 & ours & 0.500\% & 75.0 $\pm$ 7.1" in pages.latex(page)


def test_a_mean_is_left_out_where_a_column_is_missing(printed):
    page = page_of(row_of("lora"), columns=("rte", "sst2"))
    assert "| LoRA (0.5%) | ours | 0.500% | 1.0 | – | – | 1.0 |" in pages.markdown(page)


def test_a_page_says_what_its_mean_is_of(printed):
    row = row_of("lora")
    assert "mean: of rte, of seeds that have them all; of a row for which" in said(row)
    assert "mean: of sst2, of" in said(row, columns=("rte", "sst2"), mean=["sst2", "mrpc"])
    assert "mean" not in said(row, mean=[])
    assert "±" not in said(row)
    assert page_of(row, mean=[]).columns == ["rte"]


def test_a_page_names_rows_with_fewer_seeds(printed):
    rows = row_of("lora", result(1, accuracy=1.0), result(2, accuracy=1.0)), row_of("full")
    assert "fewer seeds than 2 so far, at least in one column: Full." in said(*rows)
    assert "fewer seeds" not in said(rows[0])


def test_protocols_have_columns_of_their_own(printed):
    page = page_of(
        row_of("lora", result(1, accuracy=1.0, recipe={"protocol": "generate"})),
        row_of("full", result(1, accuracy=2.0, recipe={"protocol": "likelihood"})),
    )
    assert page.columns == [
        "rte (generate)", "mean (generate)", "rte (likelihood)", "mean (likelihood)"
    ]  # fmt: skip
    text = pages.markdown(page)
    assert "| LoRA (0.5%) | paper | 0.5% | 75.4 ± 0.2 | 75.4 | – | – | – |" in text
    assert "| Full | ours | 0.500% | – | – | 2.0 | 2.0 |" in text
    assert "protocol: generate, likelihood" in text


def test_rows_scored_on_different_data_do_not_share_a_page(printed):
    other = result(2, accuracy=1.0)
    other["metrics"]["rte"]["sha256"] = "b"
    with pytest.raises(ValueError, match="rte was scored on other rows in lora, seed 2 than in"):
        page_of(row_of("lora", result(1, accuracy=1.0), other))


def test_a_page_names_every_machine_and_what_could_not_be_read(printed):
    first, second = result(1, accuracy=1.0), result(2, accuracy=1.0)
    second["hardware"] = {"accelerator": "H100"}
    second["unparsable"] = {"rte": 12.5}
    notes = said(row_of("lora", first, second))
    assert "C, 4 cores, threads: 2; torch 2" in notes
    assert "H100; torch 2" in notes
    assert "lora 12.5 %" in notes


def test_only_rows_of_several_models_are_named_by_them():
    assert published_line(9, "lorada_la").label == "LoRaDA-LA"
    assert published_line(4, "llama-7b/lorada_la").label == "LLaMA-7B, LoRaDA-LA"
    assert published_line(4, "chatgpt").label == "ChatGPT"
    row = RowResults("llama-7b/lorada_la", "LoRaDA-LA", [result(1, task="boolq", accuracy=1.0)])
    page = paper_page(4, "T", [row], {"boolq": ("boolq", None)}, mean=[], digits=1)
    assert [line.label for line in page.lines] == ["LLaMA-7B, LoRaDA-LA", "llama-7b/lorada_la"]


def test_rows_that_only_the_paper_has_come_first(printed):
    page = page_of(row_of("lora"), unrun=["full"])
    assert [(line.label, line.source) for line in page.lines] == [
        ("Full", "paper"), ("LoRA (0.5%)", "paper"), ("LoRA (0.5%)", "ours")
    ]  # fmt: skip
    assert "| Full | paper | 100% | 78.7 | 78.7 | – |" in pages.markdown(page)
