"""Plants mistakes in the source, one at a time, and says which tests notice them.

    python scripts/planted_mistakes.py --only attention --jobs 2

``planted_mistakes.yaml`` lists the mistakes, room by room: a text that stands once in a file of
``src/lorada``, what is written in its place, and what a user would suffer. The checkout is copied
to a scratch folder, where each mistake is planted alone. Then run, one after the other until a test
fails: the first tier of the test folder of that room (or of the ``tests`` that the mistake names),
the first tier of the ``further`` files, and the second tier of the former. What each mistake came
to is kept in ``--results``, so a run that was stopped goes on.

A test that fails without any mistake would catch them all, so all tests that caught one are run on
the unchanged copy at the end, and what only such a test has caught counts for nothing.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from queue import Queue

import yaml

HOME = Path(__file__).resolve().parent.parent
MISTAKES = Path(__file__).with_suffix(".yaml")
SOURCE = Path("src/lorada")
COPIED = ("src", "tests", "benchmarks", "scripts", "studies", "docs", "examples", "packages")
TIERS = {"first": "not slow and not gpu and not more", "second": "more and not slow and not gpu"}
LIMIT = 180.0  # seconds of one run of tests: a mistake may make one wait for ever
UNIMPORTABLE = "the tests could not be imported"
# Imported once and then forked, as they take longer than most of the tests.
WARM = ("torch", "pytest", "hypothesis", "beartype", "datasets", "scipy.stats", "pandas",
        "accelerate", "peft", "safetensors.torch", "typer", "rich", "pydantic", "transformers",
        "transformers.models.llama.modeling_llama", "transformers.models.bert.modeling_bert",
        "transformers.trainer_seq2seq")  # fmt: skip
WIDTH = 100  # of a line of the table


@dataclass(frozen=True)
class Mistake:
    """One mistake, and the tests that should notice it."""

    room: str
    file: str  # below ``src/lorada``
    before: str  # stands once in the file
    after: str
    suffers: str  # what a user would suffer, in one line
    tests: tuple[str, ...] = ()  # below ``tests``; the folder of the room if there are none
    further: tuple[str, ...] = ()  # files of other rooms that should notice it too

    @property
    def key(self) -> str:
        """What names it among the results: another text is another mistake."""
        return f"{self.file}: {self.before.strip()} → {self.after.strip()}"

    def planted(self, text: str) -> str:
        """The text of its file with the mistake in it."""
        if text.count(self.before) != 1:
            raise ValueError(f"{self.file} has {text.count(self.before)} times: {self.before}")
        return text.replace(self.before, self.after)


@dataclass(frozen=True)
class Outcome:
    """What became of a mistake."""

    caught_by: str | None  # first, second, timeout; None if no test has failed
    test: str = ""  # the first that failed
    seconds: float = 0.0
    sound: bool = False  # whether that test passes where nothing is planted


def read_mistakes(path: Path = MISTAKES) -> list[Mistake]:
    """All mistakes of the list, room by room."""
    rooms = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = []
    for room, entries in rooms.items():
        for entry in entries:
            lists = {name: tuple(entry.pop(name, ())) for name in ("tests", "further")}
            found.append(Mistake(room, **entry, **lists))
    return found


def plantable(mistakes: Iterable[Mistake], home: Path = HOME) -> Iterator[Mistake]:
    """Those whose text stands once in the source; a line says which of the others does not."""
    for mistake in mistakes:
        path = home / SOURCE / mistake.file
        try:
            mistake.planted(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            print(f"cannot be planted, mend planted_mistakes.yaml: {error}")
        else:
            yield mistake


@contextlib.contextmanager
def copy_of_checkout(home: Path = HOME) -> Iterator[Path]:
    """A copy of the checkout in a scratch folder, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="planted-") as scratch:
        place = Path(scratch) / "checkout"
        for name in COPIED:
            if (home / name).is_dir():
                shutil.copytree(home / name, place / name, symlinks=True)
        for path in home.iterdir():
            if path.is_file():
                shutil.copy(path, place)
        yield place


def write_source(path: Path, text: str) -> None:
    """Write a source file, and drop what Python has compiled of the one before."""
    path.write_text(text, encoding="utf-8")
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()


def run_tests(place: Path, tests: Iterable[str], tier: str) -> tuple[bool, list[str]]:
    """Run tests of a tier in a copy: whether they ended in time, and which failed.

    In ``either`` tier all are run, else none after the first that fails.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="failed-") as scratch:
        report = Path(scratch) / "failed"
        process = context.Process(target=_pytest, args=(place, list(tests), tier, report))
        process.start()
        process.join(LIMIT)
        in_time = not process.is_alive()
        # The tests may have started processes, which belong to its group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        names = report.read_text(encoding="utf-8").splitlines() if report.is_file() else []
        return in_time, names


def _pytest(place: Path, tests: list[str], tier: str, report: Path) -> None:
    """What a forked process does: pytest on a copy; it writes the names of tests that fail."""
    os.setpgid(0, 0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.chdir(place)
    os.environ["PYTHONPATH"] = str(place / "src")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(place / "src"))

    import pytest

    class Failures:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            note(report)

        def pytest_collectreport(self, report: pytest.CollectReport) -> None:
            note(report)

    def note(each: pytest.TestReport | pytest.CollectReport) -> None:
        if each.failed:
            with report.open("a", encoding="utf-8") as file:
                file.write(f"{each.nodeid}\n")

    chosen = ["-x", "-m", TIERS[tier]] if tier in TIERS else ["-m", "not gpu"]
    options = ["-q", "-p", "no:cacheprovider", "-n", "0", *chosen]
    code = pytest.main([*options, *tests], plugins=[Failures()])
    passed = code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if not passed and not report.is_file():  # conftest.py itself could not be imported
        report.write_text(UNIMPORTABLE, encoding="utf-8")
    os._exit(0)


def try_mistake(place: Path, mistake: Mistake, *, second: bool = True) -> Outcome:
    """Plant a mistake in a copy, run its tests, and take it out again.

    Without ``second`` only those of the first tier are run.
    """
    path = place / SOURCE / mistake.file
    text = path.read_text(encoding="utf-8")
    began = time.monotonic()
    near = [f"tests/{name}" for name in mistake.tests or [mistake.room]]
    further = [f"tests/{name}" for name in mistake.further]
    stages = [("first", near), ("first", further), ("second", near if second else [])]
    write_source(path, mistake.planted(text))
    try:
        for tier, tests in stages:
            if not tests:
                continue
            in_time, failed = run_tests(place, tests, tier)
            took = round(time.monotonic() - began, 1)
            if failed:
                return Outcome(tier, failed[0], took)
            if not in_time:
                return Outcome("timeout", seconds=took)
    finally:
        write_source(path, text)
    return Outcome(None, seconds=round(time.monotonic() - began, 1))


def refuted(place: Path, outcomes: Iterable[Outcome]) -> set[str]:
    """The tests that have caught mistakes and fail on a copy without any, too."""
    tests = {one.test for one in outcomes if one.caught_by in TIERS}
    _, failed = run_tests(place, sorted(tests - {UNIMPORTABLE}), "either") if tests else (True, [])
    return tests & {*failed, UNIMPORTABLE}


def table(mistakes: Iterable[Mistake], outcomes: dict[str, Outcome]) -> str:
    """Rooms with how many mistakes each tier caught, and those that no test noticed."""
    rows: dict[str, Counter[str]] = {}
    lines = []
    for mistake in mistakes:
        row = rows.setdefault(mistake.room, Counter())
        outcome = outcomes.get(mistake.key)
        if outcome is None:
            row["not run"] += 1
            continue
        row["planted"] += 1
        row[outcome.caught_by or "none"] += 1
        if outcome.caught_by not in TIERS:
            why = "no end" if outcome.caught_by == "timeout" else "survives"
            lines.append(f"{why}: {mistake.key}"[:WIDTH])
            lines.append(f"    {mistake.suffers}")
    heads = ("planted", "first", "second", "none", "timeout", "not run")
    shown = [f"{'room':12}" + "".join(f"{head:>9}" for head in heads)]
    for room, row in rows.items():
        shown.append(f"{room:12}" + "".join(f"{row[head]:9}" for head in heads))
    total: Counter[str] = sum(rows.values(), Counter())
    shown.append(f"{'all':12}" + "".join(f"{total[head]:9}" for head in heads))
    return "\n".join([*shown, *lines])


def main() -> None:
    """Run the mistakes that are not in the results yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", metavar="ROOM", action="append", help="may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="how many mistakes at once")
    parser.add_argument("--results", type=Path, default=HOME / "runs/planted_mistakes.json")
    parser.add_argument("--survivors", action="store_true", help="try again what no test noticed")
    parser.add_argument("--first", action="store_true", help="the first tier alone")
    parser.add_argument("--table", action="store_true", help="print the table; run nothing")
    asked = parser.parse_args()
    mistakes = [one for one in read_mistakes() if not asked.only or one.room in asked.only]
    known: dict[str, Outcome] = {}
    if asked.results.is_file():
        stored = json.loads(asked.results.read_text(encoding="utf-8"))
        known = {key: Outcome(**value) for key, value in stored.items()}
    if not asked.table:
        _run(mistakes, known, asked)
    print(table(mistakes, known))


def _run(mistakes: list[Mistake], known: dict[str, Outcome], asked: argparse.Namespace) -> None:
    """Try mistakes in copies of the checkout, ``--jobs`` at once; results are kept as they come."""
    waiting = [
        mistake
        for mistake in plantable(mistakes)
        if mistake.key not in known or (asked.survivors and known[mistake.key].caught_by != "first")
    ]
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    for name in WARM:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.ExitStack() as stack:
        places: Queue[Path] = Queue()
        for _ in range(asked.jobs):
            places.put(stack.enter_context(copy_of_checkout()))

        def attempt(mistake: Mistake) -> Outcome:
            place = places.get()
            try:
                return try_mistake(place, mistake, second=not asked.first)
            finally:
                places.put(place)

        keep = partial(_keep, asked.results, known)
        with ThreadPoolExecutor(asked.jobs) as pool:
            for mistake, outcome in zip(waiting, pool.map(attempt, waiting), strict=True):
                if outcome.caught_by or not asked.first:  # else the second tier is still to come
                    keep({mistake.key: outcome})
                by = outcome.caught_by or "SURVIVES"
                print(f"{by:9}{outcome.seconds:6.0f} s  {mistake.key}"[:WIDTH], flush=True)
        unsure = {key: one for key, one in known.items() if not one.sound}
        wrong = refuted(places.get(), unsure.values())
    for test in sorted(wrong):
        print(f"fails without a mistake, so it has caught none: {test}")
    for key, outcome in unsure.items():
        if outcome.test in wrong:
            del known[key]
        else:
            known[key] = replace(outcome, sound=True)
    keep({})


def _keep(path: Path, known: dict[str, Outcome], new: dict[str, Outcome]) -> None:
    known |= new
    fresh = path.with_suffix(".new")
    stored = {key: asdict(one) for key, one in known.items()}
    fresh.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(path)


if __name__ == "__main__":
    main()
