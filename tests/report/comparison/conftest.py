"""One made-up comparison on disk and its summary, for all tests that only read them."""

import pytest
from made_up_comparison import write_made_up

from lorada.report.comparison.read import read_comparison
from lorada.report.comparison.summarize import summarize


@pytest.fixture(scope="session")
def made_up_folder(tmp_path_factory):
    return write_made_up(tmp_path_factory.mktemp("comparison") / "made up", rows=60)


@pytest.fixture(scope="session")
def made_up_summary(made_up_folder):
    return summarize(read_comparison(made_up_folder))
