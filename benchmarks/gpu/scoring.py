"""Part 7: what is done with a finished run: rows that are scored, tokens that are written."""

import json
import time
from pathlib import Path
from typing import Any

from gpu.machine import Machine, find_tests, spread
from gpu.trainings import eight_billion
from library.made_up_rows import training_rows, write_rows
from transformers import AutoTokenizer

TITLE = "Scoring and writing with a finished run"
ABOUT = (
    "Runs of one step on random weights. The decoder has Llama-3.1-8B's shape: rows of 256 tokens "
    "are scored by their loss, and 32 prompts of 64 tokens are continued by 64. The encoder has "
    "BERT-large's shape and labels rows of 64 tokens. The first of several turns is left out."
)
HEADER = ("what", "rows a second", "tokens a second")
SECONDS = 500
ALONE = True
CASES = {
    "8B, LoRA": ("decoder", "lora"),
    "8B, LoRA and the map": ("decoder", "lora+lmam"),
    "encoder, LoRA": ("encoder", "lora"),
    "encoder, LoRaDA-LA": ("encoder", "lorada_la"),
}
LARGE_BERT = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "max_position_embeddings": 512,
}  # fmt: skip
TURNS, ROWS, PROMPTS, PROMPT, NEW = 3, 128, 32, 64, 64


def cases(machine: Machine) -> list[str]:
    """All runs."""
    return machine.pick([*CASES], ["8B, LoRA and the map", "encoder, LoRA"])


def measure(machine: Machine, case: str) -> dict[str, Any]:
    """Rows a second of ``evaluate``; tokens a second of ``generate`` for a decoder."""
    from lorada.inference.evaluate import evaluate
    from lorada.inference.generate import generate
    from lorada.inference.load import load_run
    from lorada.training.load_recipe import load_recipe
    from lorada.training.train import train

    kind, method = CASES[case]
    model, data, count = _decoder(machine) if kind == "decoder" else _encoder(machine)
    pairs = [
        "max_steps=1", "report_to=[]", "save_strategy=no", "max_length=256",
        f"use_cpu={json.dumps(machine.device == 'cpu')}",
        *(["metric=loss"] if kind == "decoder" else []),
    ]  # fmt: skip
    given = {"method": method, "model": str(model), "data": str(data)}
    recipe = load_recipe(None, pairs, {**given, "output": str(machine.folder / "scored")})
    run = load_run(train(recipe, overwrite=True, quiet=True).run)
    prompts = ["ab" * (PROMPT // 2)] * machine.pick(PROMPTS, 2)
    new = machine.pick(NEW, 4)
    rows, tokens = list[float](), list[float]()
    for _ in range(machine.pick(TURNS, 1) + 1):
        started = time.perf_counter()
        evaluate(run, str(data))
        machine.wait()
        rows.append(count / (time.perf_counter() - started))
        if kind == "decoder":
            started = time.perf_counter()
            generate(run, prompts, new)
            machine.wait()
            tokens.append(len(prompts) * new / (time.perf_counter() - started))
    return {"rows": rows[1:], "tokens": tokens[1:]}


def _decoder(machine: Machine) -> tuple[Path, Path, int]:
    """The folder of the model, a file of rows, and how many these are."""
    model = eight_billion(machine)
    count, length = machine.pick((ROWS, 256), (4, 32))
    rows = training_rows(AutoTokenizer.from_pretrained(model), [length] * count)
    return model, write_rows(machine.folder / "scored.jsonl", rows), count


def _encoder(machine: Machine) -> tuple[Path, Path, int]:
    """As ``_decoder``, for rows with classes."""
    find_tests()
    from folders import bert_folder, rows_file

    model = machine.folder / "encoder"
    if not (model / "tokenizer.json").is_file():
        bert_folder(model, **machine.pick(LARGE_BERT, {}))
    count = machine.pick(2048, 8)
    texts = [{"text": "ab" * machine.pick(32, 8), "label": "yn"[i % 2]} for i in range(count)]
    return model, rows_file(machine.folder / "labels.jsonl", texts), count


def lines(rows: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line for each run."""
    return [(name, spread(row["rows"], 0), spread(row["tokens"], 0)) for name, row in rows.items()]
