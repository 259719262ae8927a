"""Part 8: answers of a refilled batch, beside padded batches and continuous batching."""

from dataclasses import replace
from typing import Any

from gpu.machine import Machine, ratios, spread
from measure_generated_answers import (
    MIXES,
    PAD,
    Pieces,
    Settings,
    build_model,
    draw_prompts,
    in_turns,
    padded,
    refilled,
)
from transformers import ContinuousBatchingConfig, GenerationConfig

TITLE = "Answers of many rows"
ABOUT = (
    "SmolLM2-135M's shape with LoRaDA-LA, random weights, prompts of 10 to 200 tokens, "
    "answers of 1 to 64 in three mixes (`benchmarks/measure_generated_answers.py`), 32 rows "
    "at a time. The padded batches are those of transformers' `generate`, sorted by length, "
    "and stand there twice, which shows noise. *Same* counts answers that are equal to those "
    "of `generate`; in bf16 equally likely tokens may change places."
)
HEADER = (
    "answers", "refilled, s", "refilled / padded", "padded / padded", "continuous / padded",
    "same: refilled, continuous",
)  # fmt: skip
SECONDS = 400
ALONE = True
WAYS = ("refilled", "padded", "padded_again", "continuous")


def cases(machine: Machine) -> list[str]:
    """Mixes of lengths."""
    return machine.pick([*MIXES], ["even"])


def measure(machine: Machine, case: str) -> dict[str, Any]:
    """Seconds of each way in each turn."""
    settings = Settings(count=machine.pick(320, 4), batch=machine.pick(32, 2))
    settings = replace(settings, size=settings.batch, layers=machine.pick(30, 2))
    if machine.tiny:
        settings = replace(settings, limit=3, longest=20)
    model = build_model(settings.layers).to(machine.device, machine.dtype)
    prompts = draw_prompts(settings, case)
    ways = {
        "refilled": refilled,
        "padded": padded,
        "padded_again": padded,
        "continuous": continuous,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    if not machine.tiny:
        in_turns({name: way(model, prompts[:8], settings) for name, way in ways.items()})
    for _ in range(machine.pick(2, 1)):
        spent, _, answers = in_turns(
            {name: way(model, prompts, settings) for name, way in ways.items()}
        )
        for name in ways:
            seconds[name] += spent[name]
    same = {
        name: sum(answers[name][i] == answers["padded"][i] for i in range(len(prompts)))
        for name in ("refilled", "continuous")
    }
    return {"seconds": seconds, "same": same, "rows": len(prompts)}


def continuous(model: Any, prompts: list[list[int]], settings: Settings) -> Pieces:
    """Answers of transformers' continuous batching, all at once."""
    longest = max(map(len, prompts)) + settings.limit
    small = {"max_batch_tokens": 4 * longest, "num_blocks": 2 * longest, "block_size": 32}
    # On a GPU transformers chooses these by the memory that is free.
    small = small if model.device.type == "cpu" else {}
    paged = ContinuousBatchingConfig(auto_switch_to_flash=False, **small)
    choice = GenerationConfig(
        max_new_tokens=settings.limit, do_sample=False, eos_token_id=-1, pad_token_id=PAD
    )
    found: dict[int, list[int]] = {}
    with model.continuous_batching_context_manager(
        generation_config=choice, continuous_batching_config=paged, timeout=60
    ) as manager:
        for i, prompt in enumerate(prompts):
            # The second token of a prompt says how long its answer is.
            manager.add_request(prompt, str(i), max_new_tokens=prompt[1], eos_token_id=-1)
        while len(found) < len(prompts):
            result = manager.get_result(timeout=5)
            if result is not None and result.is_finished():
                if result.error is not None:
                    raise ValueError(f"continuous batching: {result.error}")
                found[int(result.request_id)] = list(result.generated_tokens)
            elif result is None and not manager.is_running():
                raise ValueError("continuous batching ended before all answers were there")
    yield found


def lines(rows: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each mix."""
    found = []
    for name, row in rows.items():
        spent = row["seconds"]
        beside = [spread(ratios(spent[way], spent["padded"]), 3)
                  for way in ("refilled", "padded_again", "continuous")]  # fmt: skip
        same = ", ".join(f"{n} of {row['rows']}" for n in row["same"].values())
        found.append((name, spread(spent["refilled"], 2), *beside, same))
    return found
