"""The figures on a page are those of the stored results: each is written again and is the same."""

import json
import shutil

import measure_method_costs
import pytest
import train_every_method
import write_results_page
from gpu import page as gpu_page
from gpu import run as gpu_run
from library import (
    generated_answers_page,
    map_costs_page,
    method_costs_page,
    peers_page,
    training_growth_page,
)
from library.page import write_marked
from marked import write_part
from paths import ROOT
from published import page as published_page


def stored(name):
    file = ROOT / f"benchmarks/results/{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def write_method_costs(page):
    results = stored("costs")
    names = [name for name in measure_method_costs.rows() if name in results["rows"]]
    write_marked(page, method_costs_page.SCRIPT, method_costs_page.page(results, names))


def write_published(page):
    numbers = json.loads(published_page.PEFT.read_text(encoding="utf-8"))
    write_part(page, "studies/published/page.py", published_page.generated(numbers))


# What is written → the page that it stands on, and what writes it into a copy of that page.
PAGES = {
    "methods": ("docs/methods.md", lambda page: write_marked(
        page, train_every_method.SCRIPT, train_every_method.page(stored("methods")))),
    "method costs": ("docs/methods.md", write_method_costs),
    "map costs": ("docs/performance.md",
                  lambda page: map_costs_page.write_page(stored("performance"), page)),
    "peers": ("docs/performance.md", lambda page: peers_page.write_page(stored("peers"), page)),
    "training growth": ("docs/performance.md", lambda page: training_growth_page.write_page(
        stored("training_growth"), page)),
    "generated answers": ("benchmarks/NOTES.md", lambda page: generated_answers_page.write_page(
        page, stored("generated_answers"))),
    "gpu": ("docs/gpu.md", lambda page: gpu_page.write_page(stored("gpu"), gpu_run.PARTS, page)),
    "published": ("docs/published.md", write_published),
    "the paper's tables": ("docs/studies/tables.md", lambda page: write_marked(
        page, write_results_page.SCRIPT, write_results_page.section())),
}  # fmt: skip


@pytest.mark.first
@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_the_figures_of_the_stored_results(name, tmp_path):
    page, write = PAGES[name]
    shutil.copy(ROOT / page, copy := tmp_path / "page.md")
    write(copy)
    assert copy.read_text(encoding="utf-8") == (ROOT / page).read_text(encoding="utf-8")


def test_a_row_of_the_paper_stands_beside_the_highest_other_whatever_its_size():
    pairs = {
        (table, row["key"], row.get("model")): other
        for table in published_page.RESULTS
        for row, other in published_page.pairs(table)
    }
    assert pairs[4, "llama2-7b/lorada_la", "LLaMA2-7B"]["label"] == "QuanTA"
    # Of a method that is printed at two sizes, each stands beside others of its size.
    assert pairs[5, "lorada_a_0.06", None]["key"] == "adapter_ffn_0.06"
    for (table, key, model), other in pairs.items():
        rows = published_page.load_published(table)["rows"]
        highest = max(
            row["scores"][-1]
            for row in rows
            if row.get("model") == model and "lorada" not in row["key"] and row["key"] != "full"
        )
        assert other["scores"][-1] == highest or key == "lorada_a_0.06"
