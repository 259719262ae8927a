"""What all tests of benchmarks share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads_as_before():
    """Benchmarks choose how many threads torch uses; other tests must not run with them."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
