"""Every published number of ``paper/published.yaml`` is one that the paper prints.

``published_numbers.json`` has the numbers; where the paper's text is, they are compared with it.
"""

import json
import re
from decimal import Decimal
from importlib.resources import files

import pytest
import yaml
from paths import PAPER
from published_numbers import FIXTURE, extract, page

PRINTED = json.loads(FIXTURE.read_text(encoding="utf-8"))["results"]
PUBLISHED = yaml.safe_load((files("lorada") / "paper" / "published.yaml").read_text("utf-8"))
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


def decimals(values):
    return [Decimal(str(value)) for value in values]


def columns_of(title, number):
    if number == 7:
        return [f"perplexity_{re.search('([0-9]{4}),ppl', title)[1]}"]
    if number == 11 and title in PAIRS:
        return PAIRS[title]
    return HEADS.get(title, [title])


def letters(text):
    return re.sub(r"[^a-z¬]", "", text.replace(r"\neg", "¬").replace(r"\text", "").lower())


def test_the_tables_are_the_papers_tables_of_results():
    assert list(PUBLISHED) == TABLES == [int(number) for number in PRINTED]


@pytest.mark.skipif(not PAPER.is_file(), reason="no text of the paper: set LORADA_DATA")
def test_the_fixture_is_what_the_script_reads_in_the_paper():
    text = PAPER.read_text(encoding="utf-8")
    assert FIXTURE.read_text(encoding="utf-8") == page(extract(text)) + "\n"


@pytest.mark.parametrize("number", TABLES)
def test_every_published_row_is_the_papers_in_numbers_columns_model_and_label(number):
    titles, rows = PRINTED[str(number)].values()
    columns = [column for title in titles for column in columns_of(title.lower(), number)]
    assert columns == PUBLISHED[number]["columns"]
    for printed, row in zip(rows, PUBLISHED[number]["rows"], strict=True):
        name = printed["name"]
        ours = decimals(std for std in row.get("std", []) if std is not None)
        if (number, row["key"]) == LOST_DOT[:2]:
            ours = [LOST_DOT[3] if std == LOST_DOT[2] else std for std in ours]
        assert row["params"] == printed["params"], name
        assert decimals(row["scores"]) == decimals(printed["scores"]), name
        assert ours == decimals(printed["spreads"]), name
        assert decimals(row[key] for key in ("gain",) if key in row) == decimals(printed["gains"])
        assert len(row["scores"]) == len(columns)
        assert len(row.get("std", row["scores"])) == len(row["scores"])
        if model := printed["model"]:
            assert row["model"] == MISREAD.get(model, model)
        rest = iter(letters(name).replace("quantta", "quanta"))
        if name not in ("", "-"):
            assert all(letter in rest for letter in letters(row["label"])), name


@pytest.mark.parametrize("number", TABLES)
def test_keys_are_unique_and_name_the_rows_model_and_every_column_has_a_metric(number):
    table = PUBLISHED[number]
    keys = [row["key"] for row in table["rows"]]
    assert len(set(keys)) == len(keys)
    if isinstance(table["metric"], dict):
        assert list(table["metric"]) == table["columns"]
    for row in table["rows"]:
        model, slash, _ = row["key"].partition("/")
        assert not slash or row["model"].lower() == model
