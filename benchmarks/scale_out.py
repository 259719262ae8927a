"""Run one comparison alone, as a Slurm array and on a Ray cluster that loses a node.

    python benchmarks/scale_out.py alone --output DIR    # first: what the others must agree with
    python benchmarks/scale_out.py array --output DIR    # two tasks of an array at once
    python benchmarks/scale_out.py ray --output DIR      # as root under Linux, with iproute2

Each part makes the same small comparison in a folder of its own. Prints how long it took, which
runs went on from a checkpoint, and which have other scores or weights than the runs made alone.
"""

import argparse
import csv
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lorada.runs.result import read_result

BUNDLED = Path(__file__).parents[1] / "src/lorada/recipes/rows/syllogisms.csv"
ROWS = 240
WAIT = 240.0  # seconds for a training to begin
NETWORK = "loradabr"
PORT = 6379
SIZES = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]


def write_rows(output: Path) -> Path:
    """Write the first rows of the bundled syllogisms, which every part trains on."""
    path = output / "rows.csv"
    with BUNDLED.open(encoding="utf-8", newline="") as rows:
        kept = list(csv.reader(rows))[: ROWS + 1]  # with the names of the columns
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(kept)
    return path


def command(output: Path, part: str) -> list[str]:
    """The command of a part, which differs from that of others in its folder alone."""
    return [
        sys.executable, "-m", "lorada.cli", "compare", "--model", "minilm-l6",
        "--data", str(write_rows(output)), "--held-out", "20%", "--methods", "lora,lmam",
        "--rates", "1e-3", "--seeds", "1,2", "max_length=48", "max_steps=40",
        "per_device_train_batch_size=4", "--output", str(output / part), "--resume",
    ]  # fmt: skip


def run_alone(output: Path) -> None:
    """Run the comparison in one command."""
    subprocess.run(command(output, "alone"), check=True)


def run_array(output: Path) -> None:
    """Start the command as two tasks of an array, as ``sbatch --array=1-2`` would."""
    tasks = []
    for number in (1, 2):
        variables = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number)}
        tasks.append(subprocess.Popen(command(output, "array"), env=variables))
    codes = [task.wait() for task in tasks]
    print(f"exit codes of the tasks: {codes}")


def ip(*words: str) -> str:
    """Call ``ip``; return what it prints."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextmanager
def network(nodes: int) -> Iterator[list[str]]:
    """Namespaces with an address each, 10.77.0.1 and on, on one bridge; ends what runs in them."""
    names = [f"lorada{number}" for number in range(1, nodes + 1)]
    ip("link", "add", NETWORK, "type", "bridge")
    try:
        ip("link", "set", NETWORK, "up")
        for number, name in enumerate(names, 1):
            ip("netns", "add", name)
            ip("link", "add", f"{name}h", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}h", "master", NETWORK, "up")
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "up")
        yield names
    finally:
        for name in names:
            kill_node(name)
            subprocess.run(["ip", "netns", "del", name], check=False)
        ip("link", "del", NETWORK)


def kill_node(name: str) -> None:
    """End every process of a namespace at once."""
    found = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True)
    for process in found.stdout.split():
        try:
            os.kill(int(process), signal.SIGKILL)
        except ProcessLookupError:  # it ended with its parent
            continue


def start_node(output: Path, names: list[str], number: int) -> None:
    """Start Ray in a namespace; the first one is the head."""
    joins = [f"--address=10.77.0.1:{PORT}"]
    if number == 1:
        joins = ["--head", f"--port={PORT}", "--include-dashboard=false"]
    words = ["ip", "netns", "exec", names[number - 1], sys.executable, "-m", "ray.scripts.scripts"]
    words += ["start", *joins, f"--node-ip-address=10.77.0.{number}", *SIZES]
    log = output / f"node{number}.log"
    with log.open("w") as file:
        subprocess.Popen(words, stdout=file, stderr=file)
    wait_for(lambda: "Ray runtime started" in log.read_text(), f"node {number}, see {log}")


def wait_for(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: if it does not within ``WAIT`` seconds.
    """
    end = time.monotonic() + WAIT
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {WAIT:g} s: {what}")
        time.sleep(0.2)


def training_on(name: str, folder: Path) -> list[Path]:
    """The runs that a process of the namespace trains, with a checkpoint, perhaps half written."""
    processes = ip("netns", "pids", name).split()
    running = []
    for file in folder.glob("runs/**/.lorada.job"):
        is_here = file.read_text().strip() in processes
        if is_here and list(file.parent.glob("checkpoint-*")):
            running.append(file.parent)
    return running


def run_ray(output: Path) -> None:
    """Run on two nodes, kill the second one while it trains, then start a third."""
    folder = output / "ray"
    with network(3) as names:
        start_node(output, names, 1)
        start_node(output, names, 2)
        words = ["ip", "netns", "exec", names[0], *command(output, "ray")]
        compare = subprocess.Popen([*words, "--cluster", f"10.77.0.1:{PORT}"])
        wait_for(
            lambda: bool(training_on(names[1], folder)),
            "a checkpoint that the second node has begun",
        )
        for run in training_on(names[1], folder):
            print(f"killed with the second node: {run.relative_to(folder)}", flush=True)
        kill_node(names[1])
        start_node(output, names, 3)
        print("the third node has joined", flush=True)
        print(f"exit code of the command: {compare.wait()}")


def print_differences(output: Path, part: str) -> None:
    """Print, for each run made alone, what the same run of this part has other than it."""
    for expected_file in sorted((output / "alone").glob("runs/**/predictions.jsonl")):
        expected_folder = expected_file.parent
        name = expected_folder.relative_to(output / "alone")
        folder = output / part / name
        if not (folder / "predictions.jsonl").is_file():  # written last
            print(f"{name}: not finished")
            continue
        result, expected = read_result(folder), read_result(expected_folder)
        same_losses = result.history == expected.history
        same_weights = weights_hash(folder) == weights_hash(expected_folder)
        same_answers = answers_hash(folder) == answers_hash(expected_folder)
        print(
            f"{name}: same losses {same_losses}, same weights {same_weights}, "
            f"same answers {same_answers}, went on from {result.resumed_from}"
        )


def weights_hash(run: Path) -> str:
    """The SHA-256 of a run's adapter."""
    return hashlib.sha256((run / "adapter/adapter_model.safetensors").read_bytes()).hexdigest()


def answers_hash(run: Path) -> str:
    """The SHA-256 of what a run answers to the held-out rows."""
    return hashlib.sha256((run / "predictions.jsonl").read_bytes()).hexdigest()


PARTS = {"alone": run_alone, "array": run_array, "ray": run_ray}


def main() -> None:
    """Run a part, and say how it differs from the comparison made alone."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--output", type=Path, required=True, help="a folder for all parts")
    given = parser.parse_args()
    output = given.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    PARTS[given.part](output)
    print(f"{given.part}: {time.monotonic() - began:.0f} s")
    print_differences(output, given.part)


if __name__ == "__main__":
    main()
