"""Runs functions in new processes, so that the peak memory of each is measured alone.

Tables, comparisons and the quickstart train many runs. A process never gives back all the memory
that it allocated, and its peak memory never falls, so each run gets its own process::

    result = own_process.call(carry_out, job, report=print)

Arguments and results are pickled. Errors and log records of a new process are raised and logged in
this one. Ctrl-C reaches the new processes, and they end when this process ends.

``concurrent.futures.ProcessPoolExecutor`` does not do this: if one of its processes is killed, it
ends the others too, and Ctrl-C in a terminal reaches its processes before they can save.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")
Report = Callable[[str], None]

CHILD = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); sys.path.append(sys.argv[2])"
    "; from lorada.compare.jobs.own_process import serve; serve(int(sys.argv[1]))"
)
# An error that cannot be pickled is raised as the first of these kinds that it belongs to.
KINDS: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, MemoryError, RuntimeError)


def call(function: Callable[..., Value], *arguments: Any, report: Report | None = None) -> Value:
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
    processes = Processes()
    try:
        processes.start(function, *arguments, report=report)
        _, answer = processes.wait()
    finally:
        processes.close()
    if answer.error is not None:
        raise answer.error
    value: Value = answer.value
    return value


@dataclass(frozen=True)
class Ended:
    """What a function returned in its process, or the error that it raised."""

    value: Any = None
    error: BaseException | None = None


class Processes:
    """Functions at work at once, each in a new process; this process passes Ctrl-C on.

    Only the main thread of a process gets signals, so another one passes nothing on.
    """

    def __init__(self) -> None:
        self._running: list[_Process] = []
        self._interrupted = False
        self._before: tuple[Any, ...] = ()  # the handler of Ctrl-C that was taken over

    def start(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        report: Report | None = None,
        threads: int | None = None,
    ) -> Hashable:
        """Start a function; return its handle.

        Args:
            function: as those that follow, an argument of ``call``.
            arguments: of the function.
            report: called here with its lines.
            threads: how many threads torch uses there, unless OMP_NUM_THREADS is set; None for all.

        Raises:
            KeyboardInterrupt: if this process was interrupted.
        """
        if not self._before and threading.current_thread() is threading.main_thread():
            self._before = (signal.signal(signal.SIGINT, self._interrupt),)
        if self._interrupted:
            raise KeyboardInterrupt
        process = _Process(function, arguments, report, threads)
        self._running.append(process)
        return process

    def wait(self) -> tuple[Hashable, Ended]:
        """Wait until any function ends; return its handle and what came of it.

        Raises:
            KeyboardInterrupt: if this process was interrupted.
        """
        while not self._interrupted:
            ended = self._next_end()
            if ended is not None and not self._interrupted:
                return ended
        raise KeyboardInterrupt

    def close(self) -> None:
        """Interrupt the functions that still run, and wait until they have saved."""
        for process in self._running:
            process.report = None  # what it reports may be what failed
            if not process.interrupted:
                process.interrupt()
        while self._running:
            self._next_end()
        for handler in self._before:
            signal.signal(signal.SIGINT, handler)
        self._before = ()

    def _next_end(self) -> tuple[Hashable, Ended] | None:
        """Handle a message of a process; return its answer if it has ended."""
        ready = wait([process.link for process in self._running])
        process = next(process for process in self._running if process.link in ready)
        answer = process.receive()
        if answer is None:
            return None
        self._running.remove(process)
        process.end()
        return process, answer

    def _interrupt(self, number: int, frame: Any) -> None:
        self._interrupted = True
        for process in list(self._running):
            process.interrupt()


class _Process:
    """A function at work in a new process.

    Attributes:
        link: the pipe to it; ``receive`` does not block once this can be read.
        interrupted: whether it was interrupted from here.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        report: Report | None,
        threads: int | None,
    ) -> None:
        self.report, self.interrupted = report, False
        level = logging.getLogger().level
        message = ForkingPickler.dumps((function, arguments, report is not None, level))
        self.link, there = Pipe()
        own = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        sys.stdout.flush()
        python = [sys.executable, "-P", "-W", "ignore::FutureWarning", "-c", CHILD]
        with there:
            self.popen = subprocess.Popen(
                [*python, str(there.fileno()), str(Path(__file__).parents[3])],
                stdin=subprocess.DEVNULL,
                # If stdout is redirected here, the child writes to stderr, not between its lines.
                stdout=None if sys.stdout is sys.__stdout__ else 2,
                pass_fds=[there.fileno()],
                process_group=0,  # a terminal sends Ctrl-C to this process, which passes it on
                env={**own, **os.environ},
            )
        with suppress(ConnectionError):  # it has ended already, and `receive` tells how
            self.link.send_bytes(message)

    def receive(self) -> Ended | None:
        """Wait for a message and handle it; return the answer once it is there, else None."""
        try:
            kind, content = self.link.recv()
        except (EOFError, ConnectionError):
            return Ended(error=_ended_early(self.popen.wait()))
        if kind == "line" and self.report is not None:
            self.report(content)
        elif kind == "record":
            logging.getLogger(content.name).handle(content)
        return content if kind == "answer" else None

    def interrupt(self) -> None:
        """Interrupt it, as Ctrl-C does."""
        self.interrupted = True
        self.popen.send_signal(signal.SIGINT)

    def end(self) -> None:
        """End it, which kills it if it has not answered, and wait until it is gone."""
        self.link.close()  # the child ends when the pipe closes
        self.popen.wait()


def _ended_early(code: int) -> BaseException:
    """The error for a process that ended without an answer, from its exit code."""
    if code in (-signal.SIGINT, 128 + signal.SIGINT):
        return KeyboardInterrupt()
    if code == -signal.SIGKILL:
        return MemoryError(
            "the process of this run was killed, as the system does when memory runs out"
        )
    return OSError(f"the process of this run ended by itself, with code {code}")


class LogSender(logging.Handler):
    """Hands log records on, with their text in place of arguments, which may not pickle."""

    def __init__(self, send: Callable[[logging.LogRecord], None], level: int = 0) -> None:
        super().__init__(level)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Format a record and hand it on."""
        text = self.format(record)
        record = logging.makeLogRecord({**vars(record), "msg": text, "args": None})
        record.exc_info, record.exc_text, record.stack_info = None, None, None
        self._send(record)


def serve(descriptor: int) -> None:
    """The child's side: run the function from the pipe, and send back the result."""
    link, sending = Connection(descriptor), threading.Lock()
    os.set_inheritable(descriptor, False)

    def send(kind: str, content: Any) -> None:
        sys.stdout.flush()  # the parent kills this process soon after its answer
        with sending:
            link.send((kind, content))

    try:
        logging.getLogger().addHandler(LogSender(lambda record: send("record", record)))
        function, arguments, reports, level = link.recv()
        logging.getLogger().setLevel(level)
        threading.Thread(target=_end_with, args=(link,), daemon=True).start()
        # Before this line, while modules are imported, Ctrl-C ends the process silently.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        options = {"report": lambda line: send("line", line)} if reports else {}
        answer = Ended(function(*arguments, **options))
        send("answer", answer)
    except (Exception, KeyboardInterrupt) as error:
        send("answer", Ended(error=_sendable(error)))


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
