"""Calls a function in a new process, so that its peak memory is measured alone.

Tables, searches and the quickstart train one run after another. A process never gives back all the
memory that it allocated, and its peak memory never falls, so each run gets its own process::

    result = own_process.call(train_and_score, job, report=print)

Arguments and results are pickled. Errors and log records of the new process are raised and logged
in this one. Ctrl-C reaches the new process, and it ends when this process ends.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")

# With lorada_cli loaded, `import lorada` does not import torch (see lorada/__init__.py).
CHILD = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); sys.path.append(sys.argv[2])"
    "; import lorada_cli; from lorada.experiments.own_process import serve; serve(int(sys.argv[1]))"
)
# An error that cannot be pickled is raised as the first of these kinds that it belongs to.
KINDS: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, MemoryError, RuntimeError)


def call(
    function: Callable[..., Value],
    *arguments: Any,
    report: Callable[[str], None] | None = None,
) -> Value:
    """Call a function in a new process.

    Args:
        function: a function of a module of this package, or a ``partial`` of one.
        arguments: its arguments.
        report: called here with each line that the function passes to its own ``report``.

    Raises:
        Exception: what the function raises, with its own traceback as a note.
        KeyboardInterrupt: if it was interrupted.
        MemoryError: if its process was killed.
        OSError: if its process ended in another way before it answered.
    """
    process = Process(function, *arguments, report=report)
    try:
        with signals_for([process]):
            while (answer := process.receive()) is None:
                pass
    finally:
        process.end()
    if answer.error is not None:
        raise answer.error
    value: Value = answer.value
    return value


@dataclass(frozen=True)
class Answer:
    """What a function returned in its process, or the error that it raised."""

    value: Any = None
    error: BaseException | None = None


class Process:
    """A function at work in a new process; the arguments are those of ``call``.

    Args:
        threads: how many threads torch uses there, unless OMP_NUM_THREADS is set; None for all.

    Attributes:
        link: the pipe to it; ``receive`` does not block once this can be read.
        interrupted: whether it was interrupted from here.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        report: Callable[[str], None] | None = None,
        threads: int | None = None,
    ) -> None:
        self.report, self.interrupted = report, False
        level = logging.getLogger().level
        message = ForkingPickler.dumps((function, arguments, report is not None, level))
        self.link, there = Pipe()
        own = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        sys.stdout.flush()
        python = [sys.executable, "-P", "-W", "ignore::FutureWarning", "-c", CHILD]
        with there:
            self._process = subprocess.Popen(
                [*python, str(there.fileno()), str(Path(__file__).parents[2])],
                stdin=subprocess.DEVNULL,
                # If stdout is redirected here, the child writes to stderr, not between its lines.
                stdout=None if sys.stdout is sys.__stdout__ else 2,
                pass_fds=[there.fileno()],
                process_group=0,  # a terminal sends Ctrl-C to this process alone, see signals_for
                env={**own, **os.environ},
            )
        with suppress(ConnectionError):  # it has ended already, and `receive` tells how
            self.link.send_bytes(message)

    def receive(self) -> Answer | None:
        """Wait for a message and handle it; return the answer once it is there, else None."""
        try:
            kind, content = self.link.recv()
        except (EOFError, ConnectionError):
            return Answer(error=_ended_early(self._process.wait()))
        if kind == "value":
            return Answer(content)
        if kind == "error":
            return Answer(error=content)
        if kind == "line" and self.report is not None:
            self.report(content)
        elif kind == "record":
            logging.getLogger(content.name).handle(content)
        return None

    def interrupt(self) -> None:
        """Interrupt it, as Ctrl-C does."""
        self.interrupted = True
        self.send_signal(signal.SIGINT)

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        self._process.send_signal(number)

    def end(self) -> None:
        """End it, which kills it if it has not answered, and wait until it is gone."""
        self.link.close()  # the child ends when the pipe closes
        self._process.wait()


def _ended_early(code: int) -> BaseException:
    """The error for a process that ended without an answer, from its exit code."""
    if code in (-signal.SIGINT, 128 + signal.SIGINT):
        return KeyboardInterrupt()
    if code == -signal.SIGKILL:
        return MemoryError(
            "the process of this run was killed, as the system does when memory runs out"
        )
    return OSError(f"the process of this run ended by itself, with code {code}")


@contextmanager
def signals_for(
    processes: Collection[Process], on_interrupt: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Pass Ctrl-C and Ctrl-Z on to those of the processes that run when they come.

    ``on_interrupt`` is called at each Ctrl-C.
    """

    def interrupt(number: int, frame: Any) -> None:
        on_interrupt()
        for process in list(processes):
            process.interrupt()

    def stop(number: int, frame: Any) -> None:
        for process in list(processes):
            process.send_signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        for process in list(processes):
            process.send_signal(signal.SIGCONT)

    if threading.current_thread() is not threading.main_thread():  # only that thread gets signals
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTSTP)}
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Sender(logging.Handler):
    """Sends log records to the other process as text, as their arguments may not pickle."""

    def __init__(self, send: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Format a record and send it."""
        text = self.format(record)
        record = logging.makeLogRecord({**vars(record), "msg": text, "args": None})
        record.exc_info, record.exc_text, record.stack_info = None, None, None
        self._send("record", record)


def serve(descriptor: int) -> None:
    """The child's side of ``call``: run the function from the pipe, and send back the result."""
    link, sending = Connection(descriptor), threading.Lock()
    os.set_inheritable(descriptor, False)

    def send(kind: str, content: Any) -> None:
        sys.stdout.flush()  # the parent kills this process soon after its answer
        with sending:
            link.send((kind, content))

    try:
        logging.getLogger().addHandler(_Sender(send))
        function, arguments, reports, level = link.recv()
        logging.getLogger().setLevel(level)
        threading.Thread(target=_end_with, args=(link,), daemon=True).start()
        # Before this line, while modules are imported, Ctrl-C ends the process silently.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        options = {"report": lambda line: send("line", line)} if reports else {}
        send("value", function(*arguments, **options))
    except (Exception, KeyboardInterrupt) as error:
        send("error", _sendable(error))


def _end_with(link: Connection) -> None:
    """Kill this process when the parent closes the pipe or ends."""
    try:
        link.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGKILL)


def _sendable(error: BaseException) -> BaseException:
    """The error if it pickles, else one of ``KINDS``, with its traceback as a note."""
    text = "".join(traceback.format_exception(error))
    try:
        error = ForkingPickler.loads(bytes(ForkingPickler.dumps(error)))
    except Exception:
        kind = next((kind for kind in KINDS if isinstance(error, kind)), RuntimeError)
        error = kind(f"{error}" if kind is not RuntimeError else f"{type(error).__name__}: {error}")
    error.add_note(f"\nIn the process of the run:\n{text}")
    return error
