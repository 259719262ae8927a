"""Jobs in the process of the test, for tests that change what a job calls or watch what it writes.

All others have the processes that a user has, which are forks of one that lasts for all tests.
"""

from lorada.compare.jobs.job import carry_out


def start(pool, job):
    """In place of ``Workers.start``."""
    pool.ended = [*getattr(pool, "ended", []), (job.name, carry_out(job))]


def wait(pool, seconds):
    """In place of ``Workers.wait``."""
    ended, pool.ended = pool.ended, []
    yield from ended
