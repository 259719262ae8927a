"""Times whole commands with each mechanism for speed or memory switched off, one at a time.

    python benchmarks/switch_off.py FOLDER COMMAND --rounds 0 --size 2    # checks, memory
    python benchmarks/switch_off.py FOLDER COMMAND --rounds 5             # times
    python benchmarks/switch_off.py FOLDER page                           # the table

A round is: everything on, A off, on, B off, on, … so each time without a mechanism stands between
two with it, and its ratio is to the mean of these. Only the work of a command is timed: its steps,
answers or requests. FOLDER keeps the run that is asked, and the results; a round that is there is
not repeated. The work of each command is in library/command_work.py, and how each mechanism is
switched off in library/switches.py.
"""

import argparse
import ctypes
import gc
import json
import logging
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from library.command_work import COMMANDS, SHORT, recipe_of
from library.fresh_process import memory_mb, reset_peak
from library.page import markdown_table
from library.switches import ALL, MECHANISMS, NOISE, counted, lines_of, off

from lorada.runs.folder.result import hardware
from lorada.runs.training.train import train
from lorada.support.allocator import keep_freed_memory
from lorada.support.files import json_text, write_atomic


def check(work: Any, states: list[str]) -> dict[str, Any]:
    """What each switch changes: calls of its seam, the result, and the memory of the work."""
    found: dict[str, Any] = {}
    with work.alike(), ExitStack() as stack:
        calls = {s: stack.enter_context(counted(MECHANISMS[s].seam)) for s in states}
        extra_memory(work)
        for state in (NOISE, *states):
            for each in calls.values():
                each.clear()
            with off(state, states, work):
                result, mb = extra_memory(work)
            if state == NOISE:
                usual, on = result, {name: len(each) for name, each in calls.items()}
                line = {"mb": mb}
            else:
                line = {"mb": mb, "on": on[state], "off": len(calls[state])}
            for name in ("loss", "gradients"):
                if name in result:
                    line[name] = result[name]
            if "answers" in result:
                pairs = list(zip(usual["answers"], result["answers"], strict=True))
                line["same"] = f"{sum(a == b for a, b in pairs)} of {len(pairs)}"
            found[state] = line
            print(state, line, flush=True)
    return found


def extra_memory(work: Any) -> tuple[dict[str, Any], int]:
    """What comes out of the work, and the most megabytes that it holds beside those before it."""
    work.ready()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    reset_peak()
    before = memory_mb("VmRSS")
    result = work.go()
    return result, round(memory_mb("VmHWM") - before)


def timed(work: Any) -> tuple[float, float]:
    """Seconds, and seconds of the processor."""
    work.ready()
    gc.collect()
    start = time.perf_counter(), time.process_time()
    work.go()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def measure(folder: Path, command: str, rounds: int, minutes: float, size: int) -> None:
    """Check the switches of a command once, then time it in rounds."""
    states = [*COMMANDS[command].switches.split(), ALL]
    file = folder / f"{command}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    torch.set_num_threads(1)
    if not (folder / "run" / "result.json").is_file():
        train(recipe_of(folder, *SHORT, "train_rows=8"), quiet=True, overwrite=True)
    work = COMMANDS[command].work(folder, size)
    if "checks" not in found:
        found |= {"hardware": hardware(), "rounds": [], "checks": check(work, states)}
        write_atomic(file, json_text(found))
    keep_freed_memory()  # as the command does
    reached = [
        s for s in states if s == ALL or found["checks"][s]["on"] != found["checks"][s]["off"]
    ]
    end = time.monotonic() + 60 * minutes
    timed(work)  # makes caches; not counted
    while time.monotonic() < end:
        counts = {state: len(times_of(found["rounds"], state)) for state in (NOISE, *reached)}
        fewest = min(counts.values())
        if fewest >= rounds:
            break
        turns = []
        found["rounds"].append(turns)
        # A round that was cut short is finished first.
        for state in ("on", *(each for s in counts if counts[s] == fewest for each in (s, "on"))):
            with off(NOISE if state == "on" else state, reached, work):
                turns.append([state, *timed(work)])
            write_atomic(file, json_text(found))
            print(command, *turns[-1], flush=True)


def times_of(rounds: list[Any], state: str, clock: int = 1) -> list[tuple[float, float]]:
    """Each time without a mechanism, and its ratio to the mean of those around it."""
    found = []
    for turns in rounds:
        for before, turn, after in zip(turns, turns[1:], turns[2:], strict=False):
            if turn[0] == state:
                ratio = 2 * turn[clock] / (before[clock] + after[clock])
                found.append((turn[clock], ratio))
    return found


def page(folder: Path, clock: int) -> str:
    """The table; ``clock`` is 1 for seconds, 2 for those of the processor."""
    header = ["switched off", "command", "seconds with it", "without", "without / with",
              "MB with it, without", "lines of code", "alike on every device"]  # fmt: skip
    lines = []
    for command, about in COMMANDS.items():
        if not (folder / f"{command}.json").is_file():
            continue
        found = json.loads((folder / f"{command}.json").read_text())
        rounds, checks = found["rounds"], found["checks"]
        usual = [turn[clock] for each in rounds for turn in each if turn[0] == "on"]
        for state in (NOISE, *about.switches.split(), ALL):
            times = times_of(rounds, state, clock)
            known = MECHANISMS[state]
            cells = ["not reached", "–", "–", "–"]
            if times:
                seconds, ratios = map(list, zip(*times, strict=True))
                memory = f"{checks[NOISE]['mb']:,}, {checks[state]['mb']:,}"
                cells = [f"{median(usual):.2f}", spread(seconds), spread(ratios), memory]
            lines.append(
                [known.name, about.title, *cells, str(lines_of(state) or "–"), known.alike]
            )
    return markdown_table(header, lines)


def spread(numbers: list[float]) -> str:
    if len(numbers) == 1:
        return f"{numbers[0]:.2f} once"
    return f"{median(numbers):.2f} ({min(numbers):.2f}–{max(numbers):.2f}) in {len(numbers)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("command", choices=(*COMMANDS, "page"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=60, help="begin no round after these")
    parser.add_argument("--size", type=int, default=8, help="of the work; 2 is enough for checks")
    parser.add_argument("--processor", action="store_true", help="page: seconds of the processor")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)
    if given.command == "page":
        print(page(given.folder, 1 + given.processor))
    else:
        measure(given.folder, given.command, given.rounds, given.minutes, given.size)


if __name__ == "__main__":
    main()
