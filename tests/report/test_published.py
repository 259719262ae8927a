"""Every published number of ``report/published.yaml``, against the text of the paper."""

import re
from decimal import Decimal
from importlib.resources import files

import pytest
import yaml
from paths import SHARED

PAPER = SHARED / "paper.md"
PUBLISHED = yaml.safe_load((files("lorada") / "report" / "published.yaml").read_text("utf-8"))
TABLES = [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 18]

# What reading the page by machine has made of some words.
MISREAD = {"LLaWA3-8B": "LLaMA3-8B", "II oMA 12D": "LLaMA-13B"}
# One ± has lost its dot: 38.0±2 in a table whose other spreads of BLEU are 0.1 to 0.3.
LOST_DOT = (10, "lorada_a", Decimal("0.2"), Decimal(2))
HEADS = {
    "mean": ["avg"], "avg.": ["avg"], "avg. (%)": ["avg"], "avg. acc": ["avg"],
    "avg. w/o aqua": ["avg"], "sts-b": ["stsb"], "sst-2": ["sst2"],
    "arc-e": ["arc_easy"], "arc-c": ["arc_challenge"], "obqa": ["openbookqa"],
    "xsum (r-1/2/l)": ["rouge1", "rouge2", "rougeL"], "mt (bleu)": ["bleu"],
}  # fmt: skip
PAIRS = {"qqp": ["qqp", "qqp_f1"], "mnli": ["mnli_matched", "mnli_mismatched"]}  # of Table 11
NAMES = {"model", "methods", "method", "method (# params)", "# params", "# params (%)",
         "negative", "low-rank", "position"}  # fmt: skip

needs_paper = pytest.mark.skipif(not PAPER.is_file(), reason="the paper's text is not here")


def printed(number):
    """The cells of a table of the paper, its head first."""
    lines = PAPER.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"Table {number}:"))
    first = next(i for i in range(start + 1, len(lines)) if "\t" in lines[i])
    last = next(i for i in range(first, len(lines)) if "\t" not in lines[i])
    rows = [line.split("\t") for line in lines[first:last]]
    if number == 12:  # what is left of its first column stands below
        assert rows.pop() == ["", "0.009 0.008 0.05"]
    return rows[0], rows[1:]


def numbers(text):
    return [Decimal(found) for found in re.findall(r"\d*\.\d+|\d+", text)]


def columns_of(title, number):
    if number == 7:
        return [f"perplexity_{re.search('([0-9]{4}),ppl', title)[1]}"]
    if number == 11 and title in PAIRS:
        return PAIRS[title]
    return HEADS.get(title, [title])


def letters(text):
    return re.sub(r"[^a-z¬]", "", text.replace(r"\neg", "¬").replace(r"\text", "").lower())


def split_row(head, cells):
    """Name, params, scores, spreads and gain of a printed row."""
    method = next((i for i, name in enumerate(head) if name.startswith("Method")), None)
    name = cells[method] if method is not None else ""
    share = next((i for i, title in enumerate(head) if title.lower().startswith("# params")), None)
    params = cells[share] if share is not None else re.search(r"\((.*?%)\)", name)[1]
    scores, spreads, gains = [], [], []
    for i, cell in enumerate(cells):
        if i in (method, share) or head[i] == "Model":
            continue
        cell, _, gain = cell.partition("(+")
        score, _, spread = cell.replace(r"\pm", "±").partition("±")
        scores += numbers(score)
        spreads += numbers(spread)
        gains += numbers(gain)
    return name, params.replace("%", "").strip(), scores, spreads, gains


def test_the_tables_are_the_papers_tables_of_results():
    assert list(PUBLISHED) == TABLES


@needs_paper
@pytest.mark.parametrize("number", TABLES)
def test_every_published_number_is_the_papers_and_none_is_missing(number):
    head, rows = printed(number)
    assert len(rows) == len(PUBLISHED[number]["rows"])
    for cells, row in zip(rows, PUBLISHED[number]["rows"], strict=True):
        name, params, scores, spreads, gains = split_row(head, cells)
        ours = [Decimal(str(std)) for std in row.get("std", []) if std is not None]
        if (number, row["key"]) == LOST_DOT[:2]:
            ours = [LOST_DOT[3] if std == LOST_DOT[2] else std for std in ours]
        assert row["params"] == params, name
        assert [Decimal(str(score)) for score in row["scores"]] == scores, name
        assert ours == spreads, name
        assert [Decimal(str(row[key])) for key in ("gain",) if key in row] == gains, name


@needs_paper
@pytest.mark.parametrize("number", TABLES)
def test_columns_models_and_labels_are_those_of_the_printed_rows(number):
    head, rows = printed(number)
    titles = [title.lower() for title in head if title.lower() not in NAMES]
    columns = [column for title in titles for column in columns_of(title, number)]
    assert columns == PUBLISHED[number]["columns"]
    for cells, row in zip(rows, PUBLISHED[number]["rows"], strict=True):
        assert len(row["scores"]) == len(PUBLISHED[number]["columns"])
        assert len(row.get("std", row["scores"])) == len(row["scores"])
        if head[0] == "Model" and cells[0]:
            assert row["model"] == MISREAD.get(cells[0], cells[0])
        name = split_row(head, cells)[0]
        rest = iter(letters(name).replace("quantta", "quanta"))
        if name not in ("", "-"):
            assert all(letter in rest for letter in letters(row["label"])), name


@pytest.mark.parametrize("number", TABLES)
def test_keys_are_unique_and_every_column_has_a_metric(number):
    table = PUBLISHED[number]
    keys = [row["key"] for row in table["rows"]]
    assert len(set(keys)) == len(keys)
    if isinstance(table["metric"], dict):
        assert list(table["metric"]) == table["columns"]


def test_models_in_keys_are_the_rows_models():
    for table in PUBLISHED.values():
        for row in table["rows"]:
            model, slash, _ = row["key"].partition("/")
            if slash:
                assert row["model"].lower() == model
