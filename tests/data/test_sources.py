"""Where a benchmark's rows come from: what the hub is asked, and what is said without it."""

from unittest.mock import Mock

import datasets
import pytest
from folders import refused, split_file

from lorada.data.rows import DATA_VARIABLE, data_folder, read_source
from lorada.data.tasks import TASKS

RTE = TASKS["rte"].train["own"]
UNREACHED = {
    "no network": ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub (ConnectError)"),
    "no words": TimeoutError(),
}


@pytest.fixture
def hub(monkeypatch):
    """Stands in for ``load_dataset``; it answers with one row."""
    hub = Mock(return_value=[{"sentence1": "a", "sentence2": "b", "label": 0}])
    monkeypatch.setattr(datasets, "load_dataset", hub)
    return hub


@pytest.mark.parametrize(
    ("task", "words"), [("rte", ("nyu-mll/glue", "rte")), ("wmt16_en_ro", ("wmt/wmt16", "ro-en"))]
)
def test_the_hub_is_asked_for_a_data_set_its_configuration_and_split(task, words, hub):
    rows = read_source(TASKS[task].train["own"], None)
    hub.assert_called_once_with(*words, split="train")
    assert rows == [{"sentence1": "a", "sentence2": "b", "label": 0}]


def test_files_of_the_hub_are_read_one_by_one(hub):
    source = TASKS["proof_pile"].train["redpajama"]
    assert len(read_source(source, None)) == hub.call_count
    assert [call.kwargs["data_files"] for call in hub.mock_calls] == source.hub.split()


@pytest.mark.parametrize("case", UNREACHED)
def test_a_hub_out_of_reach_is_one_line_with_what_to_do(case, hub):
    hub.side_effect = UNREACHED[case]
    with pytest.raises(ValueError, match="cannot load nyu-mll/glue from the hub") as caught:
        read_source(RTE, None)
    line = str(caught.value)
    assert "\n" not in line
    reason = str(UNREACHED[case]).split("\n")[0] or "TimeoutError"
    assert f"({reason})" in line
    for remedy in ("--data-dir DIR", DATA_VARIABLE, "glue/rte/train.jsonl.gz", "--data FILE"):
        assert remedy in line


def test_a_folder_without_the_rows_is_named_with_what_it_has(tmp_path):
    said = r"no data at .*glue/rte/train\.jsonl\.gz: there is"
    refused(said, lambda: read_source(RTE, tmp_path), FileNotFoundError)
    split_file(tmp_path / "glue" / "rte", "validation", [{"label": 0}])
    refused("glue/rte has validation$", lambda: read_source(RTE, tmp_path), FileNotFoundError)


def test_a_data_folder_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "none"))
    said = r"no data folder at .*none: correct --data-dir or"
    refused(said, lambda: data_folder(None), FileNotFoundError)
    assert data_folder(str(tmp_path)) == tmp_path
    monkeypatch.delenv(DATA_VARIABLE)
    assert data_folder(None) is None
