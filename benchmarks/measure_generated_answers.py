"""Measure how long answers take: in a refilled batch, and in padded batches of ``generate``.

    python benchmarks/measure_generated_answers.py               # 1,000 rows, twice each
    python benchmarks/measure_generated_answers.py --count 60 --output DIR   # a quick look

The model has the shape of SmolLM2-135M and LoRaDA-LA with random weights. Prompts have 10 to 200
tokens. The answers' lengths are drawn too: the first two tokens of a prompt say how long it is and
where its answer ends, which both ways read in the same manner. Mixes of lengths:

    even    1 to 64 tokens, each length as often
    tail    16 on average, most of them short, few up to 64
    alike   all 64: nothing ends early, so nothing is gained by refilling

The padded batches are sorted by length and measured twice, which shows noise. In them transformers
is as it comes: lorada switches off that keys are copied for each query head (``loading.py``). The
ways take turns after every few answers, since a machine's speed may change within a minute. All
answers of both ways are compared. Writes benchmarks/results/generated_answers.json and
benchmarks/NOTES.md.
"""

import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from library.generated_answers_page import PAGE, show, write_page
from library.measuring import Request, Results, measure_rows, read_request, run_script
from library.timing import Seconds, ratio
from library.training_setup import benchmark_plan
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from lorada.inference.continuous_batching import Writer, write_answers

RESULTS = Path(__file__).parent / "results" / "generated_answers.json"
PAD, FIRST_WORD = 0, 1000  # tokens below the first word are numbers
MIXES = ("even", "tail", "alike")
Answers = dict[int, list[int]]
Pieces = Iterator[Answers]  # some answers at a time


@dataclass(frozen=True)
class Settings:
    """What decides the figures: ``batch`` rows are padded, ``size`` refilled at one time."""

    count: int = 1000
    shortest: int = 10
    longest: int = 200
    limit: int = 64
    batch: int = 16
    size: int = 32  # the default of ``eval_batch_size``
    layers: int = 30
    repetitions: int = 2
    threads: int = 2


def build_model(layers: int) -> PeftModel:
    """SmolLM2-135M's shape with LoRaDA-LA, whose parts all change the answers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576, num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, vocab_size=49152, tie_word_embeddings=True, pad_token_id=PAD,
        bos_token_id=None, eos_token_id=None, initializer_range=0.04,
    )  # fmt: skip
    plan = benchmark_plan("lorada_la", config)
    assert plan.config is not None
    model = get_peft_model(LlamaForCausalLM(config), plan.config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
        parameter.requires_grad_(False)
    return model


def draw_prompts(settings: Settings, mix: str) -> list[list[int]]:
    """Prompts, each of which begins with its own length and that of its answer."""
    numbers = random.Random(0)
    prompts = []
    for _ in range(settings.count):
        length = numbers.randint(settings.shortest, settings.longest)
        answer = {
            "even": numbers.randint(1, settings.limit),
            "tail": min(settings.limit, 1 + int(numbers.expovariate(4 / settings.limit))),
            "alike": settings.limit,
        }[mix]
        words = [numbers.randrange(FIRST_WORD, 49152) for _ in range(length - 2)]
        prompts.append([length, answer, *words])
    return prompts


class AnswerEnds(StoppingCriteria):  # type: ignore[misc]
    """Says which rows (B,) of ids (B, T) have answers as long as their prompts ask for."""

    def __call__(self, input_ids: Tensor, scores: Any = None, **kwargs: Any) -> Tensor:
        """(B,) booleans."""
        begin = (input_ids != PAD).int().argmax(-1, keepdim=True)
        prompt, answer = input_ids.gather(1, begin), input_ids.gather(1, begin + 1)
        return (begin + prompt + answer <= input_ids.shape[1])[:, 0]


def padded(model: PeftModel, prompts: list[list[int]], settings: Settings) -> Pieces:
    """Answers of ``generate`` in padded batches of prompts of similar length, batch by batch."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), settings.batch):
        chosen = order[start : start + settings.batch]
        width = len(prompts[chosen[0]])
        rows = [[PAD] * (width - len(prompts[i])) + prompts[i] for i in chosen]
        ids = torch.tensor(rows, device=model.device)
        with torch.no_grad():
            out = model.generate(
                input_ids=ids, attention_mask=(ids != PAD).long(), do_sample=False,
                max_new_tokens=settings.limit, pad_token_id=PAD,
                stopping_criteria=StoppingCriteriaList([AnswerEnds()]),
            )[:, width:]  # fmt: skip
        yield {i: row[: prompts[i][1]] for i, row in zip(chosen, out.tolist(), strict=True)}


def refilled(model: PeftModel, prompts: list[list[int]], settings: Settings) -> Pieces:
    """Answers of a batch that is refilled, one by one."""
    base = model.get_base_model()
    writer = Writer(base, AnswerEnds(), settings.limit, PAD, settings.size)
    for i, ids in write_answers(writer, prompts):
        yield {i: ids.tolist()}


def in_turns(ways: dict[str, Pieces]) -> tuple[Seconds, Seconds, dict[str, Answers]]:
    """Exhaust all ways; the one with the fewest answers so far goes on with its next piece.

    Returns:
        Seconds of each way, its processor seconds, and its answers.
    """
    seconds: Seconds = {name: [0.0] for name in ways}
    processor: Seconds = {name: [0.0] for name in ways}
    answers: dict[str, Answers] = {name: {} for name in ways}
    going = dict(ways)
    while going:
        name = min(going, key=lambda each: len(answers[each]))
        started = time.perf_counter(), time.process_time()
        piece = next(going[name], None)
        seconds[name][0] += time.perf_counter() - started[0]
        processor[name][0] += time.process_time() - started[1]
        if piece is None:
            del going[name]
        else:
            answers[name] |= piece
    return seconds, processor, answers


def measure(settings: Settings, mix: str) -> dict[str, Any]:
    """A row: seconds of both ways, and how many answers are the same."""
    model, prompts = build_model(settings.layers), draw_prompts(settings, mix)
    ways = {"refilled": refilled, "padded": padded, "padded_again": padded}
    in_turns({name: way(model, prompts[:4], settings) for name, way in ways.items()})  # warms up
    seconds: Seconds = {name: [] for name in ways}
    processor: Seconds = {name: [] for name in ways}
    for _ in range(settings.repetitions):
        taken = {name: way(model, prompts, settings) for name, way in ways.items()}
        *times, answers = in_turns(taken)
        for total, of_turn in zip((seconds, processor), times, strict=True):
            for name in ways:
                total[name] += of_turn[name]
    same = sum(answers["refilled"][i] == answers["padded"][i] for i in range(len(prompts)))
    few: Answers = {}
    with model.disable_adapter():
        for piece in refilled(model, prompts[: settings.batch], settings):
            few |= piece
    return {
        **ratio(seconds, "refilled", "padded"),
        "noise": ratio(seconds, "padded_again", "padded"),
        "processor": ratio(processor, "refilled", "padded"),
        "processor_noise": ratio(processor, "padded_again", "padded"),
        "seconds": {name: round(statistics.median(s), 1) for name, s in seconds.items()},
        "turns": settings.repetitions,
        "rows": len(prompts),
        "same": same,
        "changed_by_adapter": sum(few[i] != answers["refilled"][i] for i in few),
        "tokens_read": sum(map(len, prompts)),
        "tokens_written": sum(map(len, answers["refilled"].values())),
    }


def run(request: Request) -> Results:
    """Measure the mixes that are asked for, or those that are missing."""

    def page(name: str, results: Results) -> None:
        write_page(request.page, results)

    results = measure_rows(request, MIXES, partial(measure, request.settings), page)
    show(results)
    return results


if __name__ == "__main__":
    run_script(run, read_request(__doc__, MIXES, Settings, RESULTS, PAGE))
