"""Stands in for the processes of runs: each function is called in the process of the test."""

from lorada.compare.jobs.own_process import Ended


class Here:
    """``own_process.Processes`` without processes; an interrupt passes through."""

    def __init__(self):
        self._ended = []

    def start(self, function, *arguments, report=None, threads=None):
        try:
            value = function(*arguments, **({} if report is None else {"report": report}))
            answer = Ended(value)
        except Exception as error:
            answer = Ended(error=error)
        self._ended.append((object(), answer))
        return self._ended[-1][0]

    def wait(self):
        return self._ended.pop(0)

    def close(self):
        pass
