"""Where a benchmark's rows come from: what the hub is asked, and what is said without it."""

import datasets
import pytest
from folders import bert_folder, split_file

from lorada.tasks import TASKS
from lorada.tasks.sources import DATA_VARIABLE, data_folder, read_source

RTE = TASKS["rte"].train["own"]
UNREACHED = {
    "no network": ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub (ConnectError)"),
    "no words": TimeoutError(),
}


@pytest.fixture
def asked(monkeypatch):
    """What the hub is asked for; it answers with one row."""
    asked = []

    def load_dataset(*words, **named):
        asked.append((words, named))
        return [{"sentence1": "a", "sentence2": "b", "label": 0}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def fail_with(error, monkeypatch):
    """Make the hub's client fail with an error."""

    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.mark.parametrize(
    ("task", "words"), [("rte", ("nyu-mll/glue", "rte")), ("wmt16_en_ro", ("wmt/wmt16", "ro-en"))]
)
def test_the_hub_is_asked_for_a_data_set_its_configuration_and_split(task, words, asked):
    rows = read_source(TASKS[task].train["own"], None)
    assert asked == [(words, {"split": "train"})]
    assert rows == [{"sentence1": "a", "sentence2": "b", "label": 0}]


def test_files_of_the_hub_are_read_one_by_one(asked):
    source = TASKS["proof_pile"].train["redpajama"]
    assert len(read_source(source, None)) == len(asked)
    assert [named["data_files"] for _, named in asked] == source.hub.split()


@pytest.mark.parametrize("case", UNREACHED)
def test_a_hub_out_of_reach_is_one_line_with_what_to_do(case, monkeypatch):
    fail_with(UNREACHED[case], monkeypatch)
    with pytest.raises(ValueError, match="cannot load nyu-mll/glue from the hub") as caught:
        read_source(RTE, None)
    line = str(caught.value)
    assert "\n" not in line
    reason = str(UNREACHED[case]).split("\n")[0] or "TimeoutError"
    assert f"({reason})" in line
    for remedy in ("--data-dir DIR", DATA_VARIABLE, "glue/rte/train.jsonl.gz", "--data FILE"):
        assert remedy in line


def test_training_without_rows_is_one_line_and_writes_nothing(call, tmp_path, monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    fail_with(UNREACHED["no network"], monkeypatch)
    model, run = bert_folder(tmp_path / "bert"), tmp_path / "run"
    words = ["train", "--method", "lora", "--model", model, "--task", "rte", "--output", run]
    code, _, err = call(*words)
    assert code == 2
    assert err.splitlines()[-1].startswith("error: cannot load nyu-mll/glue from the hub")
    assert not run.exists()


def test_a_folder_without_the_rows_is_named_with_what_it_has(tmp_path):
    said = r"no data at .*glue/rte/train\.jsonl\.gz: there is"
    with pytest.raises(FileNotFoundError, match=said):
        read_source(RTE, tmp_path)
    split_file(tmp_path / "glue" / "rte", "validation", [{"label": 0}])
    with pytest.raises(FileNotFoundError, match=r"glue/rte has validation$"):
        read_source(RTE, tmp_path)


def test_a_data_folder_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"no data folder at .*none: correct --data-dir or"):
        data_folder(None)
    assert data_folder(str(tmp_path)) == tmp_path
    monkeypatch.delenv(DATA_VARIABLE)
    assert data_folder(None) is None
