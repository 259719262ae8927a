"""A function in a process of its own, whose peak of memory is then its own too.

Tables, searches and the quickstart train one run after another. What a process has once held stays
in its high-water mark, and much of it in its hands, so each run gets a fresh one::

    result = apart.call(train_and_score, job, report=print)

It is as if the function ran here: it is given and gives anything that can be sent, its errors are
raised here, its log lines are logged here. Ctrl-C reaches it, and it ends with this process.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")

# With this module loaded `import lorada` takes no torch: see there.
CHILD = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); sys.path.append(sys.argv[2])"
    "; import lorada_cli; from lorada.experiments.own_process import serve; serve(int(sys.argv[1]))"
)
# What errors become whose own kind cannot be sent.
KINDS: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, MemoryError, RuntimeError)


def call(
    function: Callable[..., Value],
    *arguments: Any,
    report: Callable[[str], None] | None = None,
) -> Value:
    """Call a function in a fresh process.

    Args:
        function: by its name in a module of this package, or a ``partial`` of such a one.
        arguments: what it is called with.
        report: if given, the function gets a ``report`` of its own, whose lines come here.

    Raises:
        Exception: what the function raises, with its own traceback as a note.
        KeyboardInterrupt: if it was interrupted.
        MemoryError: if its process was killed.
        OSError: if its process ended otherwise before the function did.
    """
    here, there = Pipe()
    sys.stdout.flush()
    python = [sys.executable, "-P", "-W", "ignore::FutureWarning", "-c", CHILD]
    with here, there:
        process = subprocess.Popen(
            [*python, str(there.fileno()), str(Path(__file__).parents[2])],
            stdin=subprocess.DEVNULL,
            # Where what is printed here goes elsewhere, it must not get among a program's output.
            stdout=None if sys.stdout is sys.__stdout__ else 2,
            pass_fds=[there.fileno()],
            process_group=0,  # Ctrl-C in a terminal comes to this process alone, which hands it on
        )
        there.close()
        try:
            with _signals_for(process):
                level = logging.getLogger().level
                here.send((function, arguments, report is not None, level))
                value: Value = _answer(here, process, report)
            return value
        finally:
            here.close()  # at which it ends, if it has not
            process.wait()


def _answer(
    here: Connection, process: "subprocess.Popen[bytes]", report: Callable[[str], None] | None
) -> Any:
    """What comes of a call; lines that come before it are passed on."""
    while True:
        try:
            kind, content = here.recv()
        except (EOFError, ConnectionError):
            raise _sudden(process.wait()) from None
        if kind == "value":
            return content
        if kind == "error":
            raise content
        if kind == "line" and report is not None:
            report(content)
        elif kind == "record":
            logging.getLogger(content.name).handle(content)


def _sudden(code: int) -> BaseException:
    """Why a process ended without an answer, from its exit code."""
    if code in (-signal.SIGINT, 128 + signal.SIGINT):
        return KeyboardInterrupt()
    if code == -signal.SIGKILL:
        return MemoryError("the process of this run was killed, as the system does for want of it")
    return OSError(f"the process of this run ended by itself, with code {code}")


@contextmanager
def _signals_for(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Hand Ctrl-C on to another process, and stop and go on together with it."""

    def interrupt(number: int, frame: Any) -> None:
        process.send_signal(signal.SIGINT)

    def stop(number: int, frame: Any) -> None:
        process.send_signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        process.send_signal(signal.SIGCONT)

    if threading.current_thread() is not threading.main_thread():  # which gets no signals
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
    """Sends log records, whose arguments need not be such as can be sent."""

    def __init__(self, tell: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record with its text made."""
        text = self.format(record)
        record = logging.makeLogRecord({**vars(record), "msg": text, "args": None})
        record.exc_info, record.exc_text, record.stack_info = None, None, None
        self._tell("record", record)


def serve(descriptor: int) -> None:
    """The other side of ``call``: carry out what comes through a pipe, and answer."""
    link, sending = Connection(descriptor), threading.Lock()
    os.set_inheritable(descriptor, False)

    def tell(kind: str, content: Any) -> None:
        sys.stdout.flush()  # after its answer this process has no time for it
        with sending:
            link.send((kind, content))

    try:
        logging.getLogger().addHandler(_Sender(tell))
        function, arguments, reports, level = link.recv()
        logging.getLogger().setLevel(level)
        threading.Thread(target=_end_with, args=(link,), daemon=True).start()
        # Until all is imported, Ctrl-C has ended this process without a word.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        options = {"report": lambda line: tell("line", line)} if reports else {}
        tell("value", function(*arguments, **options))
    except (Exception, KeyboardInterrupt) as error:
        tell("error", _sendable(error))


def _end_with(link: Connection) -> None:
    """End this process at once when the other, which says no more, is gone or wants no answer."""
    try:
        link.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGKILL)


def _sendable(error: BaseException) -> BaseException:
    """An error, or one like it where its own kind cannot be made again, with its traceback."""
    text = "".join(traceback.format_exception(error))
    try:
        error = ForkingPickler.loads(bytes(ForkingPickler.dumps(error)))
    except Exception:
        kind = next((kind for kind in KINDS if isinstance(error, kind)), RuntimeError)
        error = kind(f"{error}" if kind is not RuntimeError else f"{type(error).__name__}: {error}")
    error.add_note(f"\nIn the process of the run:\n{text}")
    return error
