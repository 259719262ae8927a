"""Times steps of `lorada serve`'s batches with and without the map in turns; writes docs/serve.md.

    python benchmarks/serving/steps.py FOLDER [--batches 1 8 32] [--rounds 9]

FOLDER is that of run.py, and its LoRaDA-LA is what runs: the model, the batching and the settings
of the server, without HTTP. In a round, a batch of requests is answered. Each step writes one token
of each request, all under the map. The steps go in threes: without the map, with it, without it. So
whatever else the machine does meets both. A round's ratio is the mean time of steps without the map
over that of steps with it; its noise is the time of all first steps over that of all third ones.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

sys.path.insert(0, str(Path(__file__).parent.parent))

from library.page import markdown_table, write_marked

from lorada.runs.folder.result import hardware
from lorada.runs.inference.load import load_run
from lorada.runs.serving.batched import PAGE, PASS
from lorada.runs.serving.shared_model import AdapterView, SharedModel
from lorada.support.allocator import keep_freed_memory
from lorada.support.files import json_text, write_atomic
from lorada.tuners.lmam import LmamLayer

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "serving_steps.json"
DOCS = HERE.parent.parent / "docs" / "serve.md"
READ, WRITTEN = 32, 49  # tokens of a prompt, and of an answer: a prompt's pass writes the first
Round = dict[str, float]  # "ratio", "noise", and "seconds" of a step with the map


class InTurns(AdapterView):
    """A model that runs every third pass of single tokens with its maps, and times them."""

    def __init__(self, shared: SharedModel, key: str, batch: int) -> None:
        super().__init__(shared, key)
        self.batch = batch
        self.seconds: list[float] = []
        self._maps = [m for m in shared.base.modules() if isinstance(m, LmamLayer)]

    def __call__(self, **inputs: Any) -> Any:
        """One pass. It counts if it writes one token of every request and reads no prompt."""
        tokens, sequences = inputs["input_ids"].shape[1], len(inputs["cu_seq_lens_q"]) - 1
        counts = tokens == sequences == self.batch
        with_map = not counts or len(self.seconds) % 3 == 1
        for layer in self._maps:
            layer.enable_adapters(with_map)
        start = time.perf_counter()
        found = super().__call__(**inputs)
        if counts:
            self.seconds.append(time.perf_counter() - start)
        return found


def main() -> None:
    given = _arguments()
    keep_freed_memory()  # as the command does
    run = load_run(given.folder / "lorada_la")
    shared = SharedModel(run.model)
    found: dict[str, list[Round]] = {str(batch): [] for batch in given.batches}
    with torch.no_grad():
        for number in range(given.rounds + 1):
            for batch in given.batches:
                measured = _round(InTurns(shared, "default", batch), number)
                if number:  # the first makes caches
                    found[str(batch)].append(measured)
                    print(f"round {number}, batch {batch}: {measured}", flush=True)
            results = {"hardware": hardware(), "rounds": found}
            write_atomic(given.results, json_text(results))
    write_marked(given.page, "serving/steps.py", page(json.loads(given.results.read_text())))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=DOCS)
    return parser.parse_args()


def _round(model: InTurns, seed: int) -> Round:
    """Answer a batch of requests."""
    draw = random.Random(seed)
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(
        page_size=PAGE, max_batch_tokens=PASS, auto_switch_to_flash=False,
        num_blocks=model.batch * (READ + WRITTEN + PAGE) // PAGE + 1,
    )  # fmt: skip
    manager = model.init_continuous_batching(config, batching)
    for name in range(model.batch):
        prompt = [draw.randint(1000, 20000) for _ in range(READ)]
        manager.add_request(prompt, request_id=str(name), max_new_tokens=WRITTEN)
    manager.start()
    answers = [manager.get_result(timeout=600) for _ in range(model.batch)]
    manager.stop(block=True)
    if any(answer is None or len(answer.generated_tokens) != WRITTEN for answer in answers):
        raise RuntimeError("an answer is missing or too short")
    steps = model.seconds[: len(model.seconds) // 3 * 3]
    first, own, third = (sum(steps[k::3]) for k in range(3))
    return {
        "ratio": (first + third) / 2 / own,
        "noise": first / third,
        "seconds": own * 3 / len(steps),
    }


def page(results: dict) -> str:
    """The table of all batches."""
    lines = [
        [batch, *(_spread([one[name] for one in rounds]) for name in ("ratio", "noise")),
         f"{1e3 * median(one['seconds'] for one in rounds):.0f} ms"]
        for batch, rounds in results["rounds"].items()
    ]  # fmt: skip
    machine, rounds = results["hardware"], len(next(iter(results["rounds"].values())))
    header = ["batch", "without the map over with it", "noise", "step with the map"]
    return (
        f"\nSmolLM2-135M, fp32, {machine['cpu']}, {machine['cores']} cores, {rounds} rounds of "
        f"{(WRITTEN - 1) // 3} steps each with the map, prompts of {READ} tokens.\n\n"
        f"{markdown_table(header, lines)}\n"
    )


def _spread(numbers: list[float]) -> str:
    return f"{median(numbers):.3f} ({min(numbers):.3f}–{max(numbers):.3f})"


if __name__ == "__main__":
    main()
