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
    write_marked(page, "published/page.py", published_page.generated(numbers))


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
    "the paper's tables": ("docs/paper.md", lambda page: write_marked(
        page, write_results_page.SCRIPT, write_results_page.section())),
}  # fmt: skip


@pytest.mark.first
@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_the_figures_of_the_stored_results(name, tmp_path):
    page, write = PAGES[name]
    shutil.copy(ROOT / page, copy := tmp_path / "page.md")
    write(copy)
    assert copy.read_text(encoding="utf-8") == (ROOT / page).read_text(encoding="utf-8")
