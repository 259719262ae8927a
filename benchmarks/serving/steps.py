"""Times each step of `lorada serve`'s batches with and without the map, for benchmarks/NOTES.md.

    python benchmarks/serving/steps.py FOLDER [--rounds 3]

FOLDER is that of run.py, and its LoRaDA-LA is what runs: the model, the batching and the settings
of the server, without HTTP. Every step is computed three times from the same tokens, without the
map, with it, and without it, so that whatever else the machine does meets both. A round's ratio is
the time of all steps without it (the mean of two) over the time with it; its noise is the time of
all first steps over that of all third ones.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

sys.path.insert(0, str(Path(__file__).parent.parent))

from library.page import markdown_table, write_marked
from serving.load import Load

from lorada.inference.load import load_run
from lorada.inference.serving.served import PAGE, PASS, AdapterView, SharedModel
from lorada.runs.result import hardware
from lorada.support.files import json_text, write_atomic
from lorada.tuners.lmam import LmamLayer

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "serving_steps.json"
DOCS = HERE.parent / "NOTES.md"
SHORT = {"read": (32, 32), "write": (49, 49)}  # every step under the map
LOADS = {
    "1 request": Load(1, 1, **SHORT),
    "8 requests": Load(8, 8, **SHORT),
    "32 requests": Load(32, 32, **SHORT),
    "the load of the table above": Load(16, 8),
}
MAP = "the map"
Switch = Callable[[bool], None]
Round = dict[str, float]  # "ratio", "noise", and "tokens_per_second" with it


class InTurns(AdapterView):
    """A model that computes each pass three times: without the map, with it, without it."""

    def __init__(self, shared: SharedModel, key: str, switch: Switch) -> None:
        super().__init__(shared, key)
        self.seconds = [0.0, 0.0, 0.0]
        self._switch = switch

    def __call__(self, **inputs: Any) -> Any:
        """One pass. Each time writes the same slots of the cache."""
        for turn in range(3):
            self._switch(turn == 1)
            start = time.perf_counter()
            found = super().__call__(**inputs)
            self.seconds[turn] += time.perf_counter() - start
        return found


def main() -> None:
    given = _arguments()
    shared = SharedModel(load_run(given.folder / "lorada_la").model)
    maps = [module for module in shared.base.modules() if isinstance(module, LmamLayer)]
    switch = _map_switch(maps)
    found: dict[str, list[Round]] = {name: [] for name in LOADS}
    with torch.no_grad():
        _round(InTurns(shared, "default", lambda on: None), LOADS["8 requests"], 0)  # makes caches
        for number in range(given.rounds):
            for name, load in LOADS.items():
                measured = _round(InTurns(shared, "default", switch), load, number)
                found[name].append(measured)
                print(f"round {number + 1}, {name}: {measured}", flush=True)
            switch(True)
            results = {"hardware": hardware(), "rounds": {MAP: found}}
            write_atomic(given.results, json_text(results))
    write_marked(given.page, "serving/steps.py", page(json.loads(given.results.read_text())))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=DOCS)
    return parser.parse_args()


def _map_switch(maps: list[LmamLayer]) -> Switch:
    def switch(on: bool) -> None:
        for layer in maps:
            layer.enable_adapters(on)

    return switch


def _round(model: InTurns, load: Load, seed: int) -> Round:
    """Answer the requests of a load."""
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    room = load.connections * (load.read[1] + load.write[1] + PAGE) // PAGE + 1
    batching = ContinuousBatchingConfig(
        page_size=PAGE, max_batch_tokens=PASS, auto_switch_to_flash=False, num_blocks=room
    )
    manager = model.init_continuous_batching(config, batching)
    waiting = load.bodies("", seed)
    random.Random(seed).shuffle(waiting)
    lengths, written = {}, 0

    def ask() -> None:
        body = waiting.pop()
        name = str(len(waiting))
        lengths[name] = body["max_tokens"]
        manager.add_request(body["prompt"], request_id=name, max_new_tokens=body["max_tokens"])

    for _ in range(load.connections):
        ask()
    manager.start()
    for _ in range(load.requests):
        answer = manager.get_result(timeout=600)
        if answer is None or len(answer.generated_tokens) != lengths[answer.request_id]:
            raise RuntimeError("an answer is missing or too short")
        written += len(answer.generated_tokens)
        if waiting:
            ask()
    manager.stop(block=True)
    first, own, third = model.seconds
    ratio, noise = (first + third) / 2 / own, first / third
    return {"ratio": ratio, "noise": noise, "tokens_per_second": written / own}


def page(results: dict) -> str:
    """A table of the loads."""
    machine, loads = results["hardware"], results["rounds"][MAP]
    header = ["load", f"time without {MAP} over with it", "noise", "tokens/s with it"]
    lines = [
        [name, *(_spread([one[each] for one in rounds]) for each in ("ratio", "noise")),
         f"{median(one['tokens_per_second'] for one in rounds):.1f}"]
        for name, rounds in loads.items()
    ]  # fmt: skip
    rounds = len(next(iter(loads.values())))
    return (
        f"\nSmolLM2-135M with LoRaDA-LA, fp32, {machine['cpu']}, {machine['cores']} cores, "
        f"{rounds} rounds; 1, 8 and 32 requests have prompts of {SHORT['read'][0]} tokens and "
        f"answers of {SHORT['write'][0]}, all under the map.\n\n"
        f"{markdown_table(header, lines)}\n\n"
    )


def _spread(numbers: list[float]) -> str:
    return f"{median(numbers):.3f} ({min(numbers):.3f}–{max(numbers):.3f})"


if __name__ == "__main__":
    main()
