"""Measure lorada beside what people use for the same work: TRL for training, lm-eval for questions.

    make bench-peers                                             # installs the peers, then all rows
    python benchmarks/measure_peers.py --rows train              # this row again
    python benchmarks/measure_peers.py --turns 1 --short_rows 16 --output DIR   # a quick look

Both sides run in an environment of their own (``.venv-peers``, or the Python ``PEERS_PYTHON``), so
that none imports more optional packages than the other. Whole processes take turns, each with
empty caches. lorada runs twice a turn, which shows noise. Time and memory are those of the whole
process; stamps from inside tell the steps, or the scoring, from the rest. Both sides must have
learned the same tokens with about the same loss, or they are not compared. All rows take about
an hour and a half on two quiet cores.

    train     LoRA, 8 rows of 48 tokens a step, only the response is learned; beside TRL
    less      the same with activation_checkpointing=full; beside TRL as before
    both      the same with activation_checkpointing=full; beside TRL with gradient checkpointing
    mixed     rows of 16 to 512 tokens, packed by both; beside TRL
    bfloat16  the rows of train with dtype=bfloat16; beside float32
    evaluate  questions of 2 to 5 candidates; beside lm-eval, which must choose the same
    start     from the command to the first step of a training, in seconds

All words are made up. Writes benchmarks/results/peers.json and docs/performance.md.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from library.agreement import DisagreementError
from library.made_up_rows import questions, training_rows, write_rows
from library.measuring import Request, Results, measure_rows, read_request
from library.measuring import run_script as run_measurements
from library.peers_page import PAGE, show, write_page
from library.training_setup import MODEL
from library.whole_processes import (
    FIGURES,
    Finished,
    Side,
    compare,
    peers_python,
    run_in_turns,
    run_script,
    start_row,
)

from lorada.training.models.loading import load_tokenizer, model_folder

RESULTS = Path(__file__).parent / "results" / "peers.json"
SHORT, SHORTEST, LONGEST = 48, 16, 512  # tokens of a row
LOSS_TOLERANCE = 0.05  # the rows come in another order, and bfloat16 rounds
LORA = ("lora.r=8", "lora.lora_alpha=16", "lora.lora_dropout=0.05")
RECOMPUTED = "activation_checkpointing=full"
TRAINING = (
    "num_train_epochs=1", "per_device_train_batch_size=8", "learning_rate=1e-3",
    "save_strategy=no",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What decides the figures."""

    model: str = MODEL
    turns: int = 3
    threads: int = 2
    short_rows: int = 160  # 20 steps
    mixed_rows: int = 24
    questions: int = 1000  # of a process; each turn has its own


@dataclass(frozen=True)
class Place:
    """Where a row is measured: its settings, the model's folder, and a folder for what it needs."""

    settings: Settings
    model: str
    folder: Path

    def lorada(self, command: str, *arguments: Any) -> Finished:
        """Run a command of lorada."""
        return self.peer("run_lorada.py", command, *arguments)

    def train(self, data: Path, name: str, *more: str) -> Side:
        """A side that trains LoRA with lorada."""
        options = ("--method", "lora", "--model", self.model, "--data", data, "--overwrite")
        output = self.folder / name
        return lambda turn: self.lorada(
            "train", *options, "--output", output, *LORA, *TRAINING, *more
        )

    def peer(self, script: str, *arguments: Any) -> Finished:
        """Run a script of ``benchmarks/peers``."""
        return run_script(peers_python(), script, arguments, self.settings.threads)

    def train_with_trl(self, data: Path, *more: str) -> Side:
        """A side that trains LoRA with TRL."""
        about = ("--model", self.model, "--data", data, "--output", self.folder / "trl", *more)
        return lambda turn: self.peer("train_with_trl.py", *about)

    def training_rows(self, lengths: list[int]) -> Path:
        """A file of rows of these lengths in tokens."""
        rows = training_rows(load_tokenizer(self.model), lengths)
        return write_rows(self.folder / "rows.jsonl", rows)


# The rows.


def train(place: Place, ours: tuple[str, ...] = (), theirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """LoRA on short rows, beside TRL, with further options of each."""
    data = place.training_rows([SHORT] * place.settings.short_rows)
    trl = place.train_with_trl(data, *theirs)
    return compare_trainings(place, place.train(data, "lorada", *ours), {"trl": trl})


def mixed(place: Place) -> dict[str, Any]:
    """LoRA on packed rows of very different lengths, beside TRL's packing."""
    count = place.settings.mixed_rows
    steps = [i * (LONGEST - SHORTEST) // max(1, count - 1) for i in range(count)]
    data = place.training_rows([SHORTEST + step for step in steps])
    ours = place.train(data, "lorada", "packing=true")
    row = compare_trainings(place, ours, {"trl": place.train_with_trl(data, "--packing")})
    # Once, to see whether packing helps TRL on a CPU at all.
    padded = place.train_with_trl(data)(0)
    return {**row, "trl_padded": {name: round(read(padded), 1) for name, read in FIGURES.items()}}


def bfloat16(place: Place) -> dict[str, Any]:
    """LoRA on short rows in bfloat16, beside float32."""
    data = place.training_rows([SHORT] * place.settings.short_rows)
    ours = place.train(data, "lorada", "dtype=bfloat16")
    return compare_trainings(place, ours, {"float32": place.train(data, "float32")})


def compare_trainings(place: Place, ours: Side, other: dict[str, Side]) -> dict[str, Any]:
    """A row of two trainings that learned the same tokens."""
    (name,) = other
    done = run_in_turns({"lorada": ours, "lorada_again": ours, **other}, place.settings.turns)
    stamps = {side: processes[-1].stamps for side, processes in done.items()}
    check_same_work(stamps["lorada"], stamps[name])
    facts = ("labelled", "read", "steps", "loss", "versions")
    shown = {side: {key: stamps[side][key] for key in facts} for side in ("lorada", name)}
    return {**compare(done, "lorada", "lorada_again", name), "sides": shown}


def check_same_work(ours: dict[str, Any], other: dict[str, Any]) -> None:
    """Check that two trainings did the same work.

    Raises:
        DisagreementError: if not, with both figures.
    """
    for what in ("labelled", "trained"):
        if ours[what] != other[what]:
            raise DisagreementError(f"{what}: {ours[what]:,} here, {other[what]:,} there")
    if abs(ours["loss"] - other["loss"]) > LOSS_TOLERANCE * other["loss"]:
        raise DisagreementError(f"loss {ours['loss']:.4f} here, {other['loss']:.4f} there")


def evaluate(place: Place) -> dict[str, Any]:
    """Questions answered by the likelihood of their candidates, beside lm-eval."""
    settings = place.settings
    count = settings.questions
    rows = questions(load_tokenizer(place.model), count * settings.turns)
    files = [
        write_rows(place.folder / f"questions-{turn}.jsonl", rows[turn * count :][:count])
        for turn in range(settings.turns)
    ]
    # A few steps, so that the adapter is not zero.
    few = write_rows(place.folder / "few.jsonl", rows[:16])
    place.train(few, "run")(0)
    run = place.folder / "run"

    def with_lorada(turn: int) -> Finished:
        return place.lorada("evaluate", run, "--data", files[turn])

    def with_lm_eval(turn: int) -> Finished:
        task = place.folder / f"task-{turn}.yaml"
        task.write_text(TASK.format(data=files[turn]), encoding="utf-8")
        about = ("--model", place.model, "--adapter", run / "adapter", "--task", task)
        return place.peer("score_with_lm_eval.py", *about)

    sides = {"lorada": with_lorada, "lorada_again": with_lorada, "lm_eval": with_lm_eval}
    done = run_in_turns(sides, settings.turns)
    pairs = [
        pair
        for ours, other in zip(done["lorada"], done["lm_eval"], strict=True)
        for pair in zip(ours.stamps["answers"], other.stamps["answers"], strict=True)
    ]
    return {
        **compare(done, "lorada", "lorada_again", "lm_eval"),
        "same": sum(ours == other for ours, other in pairs),
        "questions": len(pairs),
        "sides": {name: {"versions": done[name][-1].stamps["versions"]} for name in sides},
    }


TASK = """task: made_up_questions
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: candidates
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
"""


def start(place: Place) -> dict[str, Any]:
    """Seconds from the command to the first step, and what they consist of."""
    data = place.training_rows([SHORT] * 8)
    ours = place.train(data, "lorada")
    done = run_in_turns({"lorada": ours, "lorada_again": ours}, 2 * place.settings.turns)
    return start_row(done["lorada"], done["lorada_again"])


ROWS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "train": train,
    "less": partial(train, ours=(RECOMPUTED,)),
    "both": partial(train, ours=(RECOMPUTED,), theirs=("--recompute",)),
    "mixed": mixed,
    "bfloat16": bfloat16,
    "evaluate": evaluate,
    "start": start,
}


def measure(settings: Settings, name: str) -> dict[str, Any]:
    """Measure a row in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(model_folder(settings.model)).absolute()
        for path in model.glob("*.safetensors"):
            with path.open("rb") as file:  # so that the first process does not wait for the disk
                while file.read(2**20):
                    pass
        return ROWS[name](Place(settings, str(model), Path(folder)))


def run(request: Request) -> Results:
    """Measure the rows of a request; ``measure_rows`` says what it raises."""
    return measure_rows(
        request,
        ROWS,
        partial(measure, request.settings),
        lambda name, results: write_page(results, request.page),
    )


def main() -> None:
    show(run_measurements(run, read_request(__doc__, ROWS, Settings, RESULTS, PAGE)))


if __name__ == "__main__":
    main()
