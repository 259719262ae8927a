"""Waiting for another process that makes the same file or folder."""

import threading
from unittest.mock import Mock

from filelock import FileLock

from lorada.support.files import one_at_a_time


def test_the_second_waits_for_the_first_and_no_lock_is_left(tmp_path):
    order, inside = [], threading.Event()

    def second():
        inside.wait()
        with one_at_a_time(tmp_path / "made"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with one_at_a_time(tmp_path / "made"):
        inside.set()
        thread.join(0.3)
        assert thread.is_alive()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert not list(tmp_path.iterdir())


def test_where_no_lock_can_be_had_nobody_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(FileLock, "acquire", Mock(side_effect=OSError("no locks here")))
    entered = []
    with one_at_a_time(tmp_path / "made"), one_at_a_time(tmp_path / "made"):
        entered.append(True)
    assert entered
