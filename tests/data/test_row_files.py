"""Rows are read the same from each kind of file, and from data sets and benchmarks of the hub."""

import csv
import datetime
import gzip
import io
import json
import logging
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from folders import ROWS, TURNS, llama_folder, refused, rows_file
from hypothesis import given, settings
from hypothesis import strategies as st

from lorada.data.files.benchmark_files import DATA_VARIABLE, data_folder, read_source
from lorada.data.files.read_rows import read_rows, refuse_missing
from lorada.data.files.table_rows import table_rows
from lorada.data.rows.own_rows import load_rows
from lorada.data.tasks import TASKS
from lorada.support.row_sources import hub_source

SENTENCES = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}, {"text": "?", "label": -1}]
CLASSES = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})


@pytest.fixture
def hub(monkeypatch):
    """Stands in for ``load_dataset``: a dictionary of what it is asked for, and what it gives."""
    found = {}

    def load(name, config=None, *, split, data_files=None):
        asked = name, data_files or config, split
        if asked not in found:
            raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nwith details")
        if isinstance(found[asked], Exception):
            raise found[asked]
        return found[asked]

    monkeypatch.setattr(datasets, "load_dataset", load)
    return found


@pytest.mark.parametrize("rows", [ROWS, TURNS], ids=["prompts", "chats"])
def test_every_kind_of_file_gives_the_same_rows(rows, tmp_path):
    lines = rows_file(tmp_path / "rows.jsonl", rows)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as file:
        file.write(lines.read_bytes())
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.PARQUET")
    for name in ("rows.jsonl", "rows.jsonl.gz", "list.json", "rows.PARQUET"):
        assert read_rows(tmp_path / name) == rows, name
        assert load_rows(str(tmp_path / name)).form in ("prompt", "messages")


# Texts of real rows are full of what may also stand between columns.
TEXTS = st.text(st.sampled_from("ab ,;|\t\"'\n"), max_size=20)


@settings(deadline=None, max_examples=300)
@given(
    delimiter=st.sampled_from(",;\t|"),
    rows=st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=5),
    before=st.sampled_from(["", "\n", "\r\n \r\n", ";;\n"]),
)
def test_the_delimiter_of_a_table_is_found_whatever_its_texts_hold(delimiter, rows, before):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([("text", "text_pair", "label"), *rows])
    expected = [dict(zip(("text", "text_pair", "label"), row, strict=True)) for row in rows]
    assert table_rows(Path("rows.csv"), before + text.getvalue()) == expected


# File → what it holds; each is the same two rows.
AS_TABLES = {
    "returns.csv": 'text,label\r"good; and cheap",yes\r"bad, dear",no\r',
    "spaced.csv": 'text, label\n"good; and cheap", yes\n"bad, dear", no\n',
    "late.tsv": "\n\ntext\tlabel\n\ngood; and cheap\tyes\nbad, dear\tno\n",
}


@pytest.mark.parametrize("name", AS_TABLES)
def test_tables_with_other_delimiters_are_read(name, tmp_path):
    expected = [{"text": "good; and cheap", "label": "yes"}, {"text": "bad, dear", "label": "no"}]
    (tmp_path / name).write_text(AS_TABLES[name])
    with gzip.open(tmp_path / f"{name}.GZ", "wt") as file:
        file.write(AS_TABLES[name])
    assert read_rows(tmp_path / name) == read_rows(tmp_path / f"{name}.GZ") == expected


def test_quotes_stay_in_a_table_with_tabs_that_quotes_nothing(tmp_path):
    (tmp_path / "glue.tsv").write_text('text\tlabel\n"Go," he said\t1\na " b\t0\n')
    assert [row["text"] for row in read_rows(tmp_path / "glue.tsv")] == ['"Go," he said', 'a " b']


def test_objects_on_several_lines_one_after_another_are_rows(tmp_path):
    text = "\n".join(json.dumps(row, indent=2) for row in ROWS[:3])
    (tmp_path / "rows.json").write_text(f"\n{text}\n")
    assert read_rows(tmp_path / "rows.json") == ROWS[:3]
    (tmp_path / "cut.json").write_text(text[:-1])
    refused("cut.json is not JSON: .* line 12", lambda: read_rows(tmp_path / "cut.json"))


def test_each_line_of_plain_text_is_a_row_and_that_is_said(tmp_path, caplog):
    (tmp_path / "notes.txt").write_bytes("one\u2028line\r\n\n  two \n".encode())
    with caplog.at_level(logging.INFO):
        found = load_rows(str(tmp_path / "notes.txt"))
    assert found.rows == [{"text": "one\u2028line"}, {"text": "  two "}]
    assert "notes.txt: each line is a text, 2 of them" in caplog.text


def test_values_of_arrow_become_values_of_json(hub):
    call = {"name": "f", "arguments": {"a": 1}}
    other = {"name": "g", "arguments": {"b": 2}}
    hub["owner/name", None, None] = Dataset.from_list(
        [{"text": None, "at": datetime.date(2025, 1, 2), "tools": [call, other]}]
    )
    assert read_rows("owner/name") == [{"text": None, "at": "2025-01-02", "tools": [call, other]}]


def test_several_files_are_one_with_their_counts_and_rows_known_by_their_own(tmp_path, caplog):
    a, b = rows_file(tmp_path / "a.jsonl", ROWS[:1]), rows_file(tmp_path / "b.jsonl", ROWS[1:3])
    with caplog.at_level(logging.INFO):
        found = load_rows(f"{a},{b}")
    assert found.rows == ROWS[:3]
    assert f"{a}: 1 row, {b}: 2 rows" in caplog.text
    part = found.part([2, 0]).part([1, 0])
    assert [part.place(0), part.place(1)] == [f"{a} row 1", f"{b} row 2"]
    rows_file(tmp_path / "c.jsonl", [ROWS[0], {"prompt": "p", "response": float("inf")}])
    refused("c.jsonl row 2: response is not a text", lambda: load_rows(f"{a},{tmp_path}/c.jsonl"))
    rows_file(tmp_path / "d.jsonl", [{"text": "t"}])
    refused("d.jsonl row 1 has no field 'prompt', which .*a.jsonl row 1 has|a.jsonl row 1 has prom",
            lambda: load_rows(f"{a},{tmp_path}/d.jsonl"))  # fmt: skip
    refused("names .*a.jsonl twice", lambda: read_rows(f"{a},{a}"))
    missing = f"{tmp_path}/e.jsonl"
    refused(f"no data file at {missing}", lambda: refuse_missing(f"{a},{missing}"),
            FileNotFoundError)  # fmt: skip
    comma = rows_file(tmp_path / "f,g.jsonl", ROWS[:2])
    assert read_rows(comma) == ROWS[:2]


def test_a_byte_order_mark_and_a_line_separator_inside_a_text_are_no_obstacle(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "a\u2028b", "response": "c"}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\n\n")
    assert read_rows(path) == [row]


BROKEN = [
    ("rows.parquet", b"PAR1 and no more", "rows.parquet is not Parquet: "),
    ("rows.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-9], "not a whole gzip file"),
    ("rows.json", b'[{"text": "a"}, 3]', "row 2 is not a JSON object with named fields"),
    ("half.json", b'[{"text": "a"}', "half.json is not JSON: "),
    ("none.json", b"[]", "none.json has no rows"),
    ("half.jsonl", b'{"prompt": "a", "response": "b"}\n{"prompt", 1}\n', "not JSON: .* line 2"),
    ("list.jsonl", b"[1]\n", "row 1 is not a JSON object"),
    ("none.jsonl", b"\n", "has no rows"),
    ("too_deep.jsonl", b"[" * 100_000 + b"\n", "is not JSON"),
    ("latin-1.jsonl", '{"prompt": "ü", "response": "b"}'.encode("latin-1"), "not text in UTF-8"),
    ("rows.csv", b"text,label\na,1\nb\n", "line 3 has another number of fields"),
    ("joined.csv", b"text,label\na,b\ntext,label\n", "line 3 repeats the header: leave it out"),
    ("twice.csv", b"text,text\na,b\n", "two columns 'text'"),
    ("header.csv", b'"text,label\na,b\n', "is not CSV: unexpected end of data"),
    ("quote.csv", b'text,label\na,b\n"c"d,e\n', "line 3 is not CSV"),
    ("rows.xlsx", b"PK\x03\x04\xff\xfe", "rows.xlsx is not text in UTF-8 .* give one of "),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN, ids=[name for name, *_ in BROKEN])
def test_a_broken_file_is_refused_with_what_is_wrong_with_it(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(message, lambda: read_rows(tmp_path / name))


NAMES = {
    "owner/name": ("owner/name", None, None),
    "owner/name:config": ("owner/name", "config", None),
    "owner/name:en-fr@train[:10]": ("owner/name", "en-fr", "train[:10]"),
    "rows.jsonl": None,
    "owner/rows.jsonl.gz": None,
    "/owner/name": None,
    "name": None,
    "builtin:syllogisms_train.jsonl": None,
}


@pytest.mark.parametrize("text", NAMES)
def test_a_data_set_of_the_hub_is_told_from_a_file(text):
    assert hub_source(text) == NAMES[text]


def test_a_file_that_is_there_is_no_data_set_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    assert hub_source("owner/name") is not None
    rows_file(tmp_path / "owner/name")
    assert hub_source("owner/name") is None
    assert read_rows("owner/name") == ROWS


def test_classes_of_the_hub_have_their_names(hub):
    hub["owner/name", "small", "train"] = Dataset.from_list(SENTENCES[:2], features=CLASSES)
    rows = load_rows("owner/name:small@train")
    assert [row["label"] for row in rows.rows] == ["yes", "no"]
    assert (rows.form, rows.labels) == ("label", ("no", "yes"))
    hub["owner/name", None, "test"] = Dataset.from_list(SENTENCES, features=CLASSES)
    refused("has the label '-1'", lambda: load_rows("owner/name@test", "label", ("no", "yes")))


def test_lists_of_classes_on_the_hub_are_lists_of_their_names(hub):
    features = Features({"text": Value("string"), "labels": [ClassLabel(names=["joy", "fear"])]})
    rows = [{"text": "a", "labels": [1, 0]}, {"text": "b", "labels": []}]
    hub["owner/name", None, "train"] = Dataset.from_list(rows, features=features)
    found = load_rows("owner/name@train")
    assert (found.form, found.labels) == ("labels", ("fear", "joy"))
    assert [row["labels"] for row in found.rows] == [["fear", "joy"], []]


def test_the_only_split_is_taken_and_of_several_each_is_named(hub):
    one = Dataset.from_list(ROWS)
    hub["owner/name", None, None] = DatasetDict({"train": one})
    assert load_rows("owner/name").rows == ROWS
    hub["owner/two", "en", None] = DatasetDict({"train": one, "test": one})
    refused("pass owner/two:en@train or owner/two:en@test", lambda: read_rows("owner/two:en"))


def test_a_local_folder_is_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    rows_file(folder / "train.jsonl")
    rows_file(folder / "test.jsonl", ROWS[:3])
    assert load_rows(f"{folder}@test").rows == ROWS[:3]
    refused("has several splits: pass .*data@train or .*data@test", lambda: read_rows(folder))


def test_a_run_learns_and_is_scored_on_data_sets_of_the_hub(works, json_of, hub, tmp_path):
    llama_folder(tmp_path / "llama")
    hub["owner/sums", None, "train"] = Dataset.from_list(ROWS[:30])
    hub["owner/sums", None, "test"] = Dataset.from_list(ROWS[30:])
    shared = ["--model", tmp_path / "llama", "--data", "owner/sums@train", "report_to=[]"]
    works("train", "--method", "lora", *shared, "--output", tmp_path / "run", "max_steps=1")
    assert json_of("evaluate", tmp_path / "run", "--data", "owner/sums@test")["n"] == 6
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert list(saved["metrics"]) == ["owner/sums@test"]


@pytest.mark.parametrize(
    ("task", "words"), [("rte", ("nyu-mll/glue", "rte")), ("wmt16_en_ro", ("wmt/wmt16", "ro-en"))]
)
def test_the_hub_is_asked_for_the_rows_of_a_benchmark(task, words, hub):
    hub[*words, "train"] = SENTENCES
    assert read_source(TASKS[task].train["own"], None) == SENTENCES


def test_files_of_the_hub_are_read_one_by_one(hub):
    source = TASKS["proof_pile"].train["redpajama"]
    addresses = source.hub.split()
    hub.update({("json", one, "train"): [{"text": one}] for one in addresses})
    assert [row["text"] for row in read_source(source, None)] == addresses


def test_rows_that_are_not_there_are_said_in_one_line_with_what_to_do(hub, tmp_path, monkeypatch):
    def missing(said, act):
        refused(said, act, FileNotFoundError)

    said = r"no data file at .*rows.jsonl: pass --data FILE \(.jsonl, .json, .csv, .tsv, .txt, ea"
    missing(said, lambda: read_rows(tmp_path / "rows.jsonl"))
    said = r"no file owner/name, and .* \(Couldn't reach 'owner/name' on the Hub\): pass a file"
    refused(said, lambda: read_rows("owner/name"))
    rte = TASKS["rte"].train["own"]
    for reason in ("Couldn't reach 'nyu-mll/glue' on the Hub", "TimeoutError"):
        said = rf"cannot load nyu-mll/glue from the hub \({reason}\): pass --data-dir DIR or set "
        said += rf"{DATA_VARIABLE} to a folder with glue/rte/train.jsonl.gz, or .* with --data FILE"
        refused(said, lambda: read_source(rte, None))
        hub["nyu-mll/glue", "rte", "train"] = TimeoutError()
    said = r"no data at .*glue/rte/train\.jsonl\.gz: correct --data-dir or "
    missing(said, lambda: read_source(rte, tmp_path))
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "none"))
    missing(r"no data folder at .*none: correct --data-dir or", lambda: data_folder(None))
    assert data_folder(str(tmp_path)) == tmp_path
    monkeypatch.delenv(DATA_VARIABLE)
    assert data_folder(None) is None
    tatoeba = TASKS["wmt16_en_ro"].train["tatoeba"]  # in local folders only
    said = "ro-en_proxy_tatoeba/train is not on the hub: pass --data"
    refused(said, lambda: read_source(tatoeba, None))
