"""Measure what the code printed in A.3 does, taken literally: PE is added again at each forward.

    python benchmarks/measure_positions_added_again.py

After k forwards the factors hold k times PE, in training and in scoring alike. A step of Adam
changes an entry by about its learning rate, 1e-4 in Table 19, and each forward adds 1 to the first
position; so k·PE beside the random start is what a map is after k forwards, whatever was learned.
Nothing is trained here. Writes its table into docs/readings.md (reading 2).
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from library.page import write_marked
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorada
from lorada import LmamConfig
from lorada.attention.observation import Observation, observe, ratio_of, squared_norms
from lorada.functional.maps import position_embedding
from lorada.training.models.loading import model_folder
from lorada.tuners.lmam import LmamLayer

PAGE = Path(__file__).parents[1] / "docs" / "readings.md"
ROWS = Path(lorada.__file__).parent / "recipes" / "rows" / "syllogisms_test.jsonl"
MODEL, RANK, LENGTH, INVERSE_SCALE, COUNT = "smollm2-135m", 2, 128, 4096 * 600, 64
FORWARDS = (1, 100, 400, 1108, 3000, 10_000)
# Three epochs of 170,000 questions in batches of 4 (Table 19), scoring not counted.
PAPERS_FORWARDS = 3 * 170_000 // 4


def main() -> None:
    torch.manual_seed(1)
    folder = model_folder(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()[:COUNT]]
    texts = [row["prompt"] + row["response"] for row in rows]
    batches = [tokenizer(text, return_tensors="pt") for text in texts]
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LmamConfig(rank=RANK, length=LENGTH, inverse_scale=INVERSE_SCALE, init="normal")
    model = get_peft_model(base, config).eval()
    with model.disable_adapter():
        plain = mean_loss(model, batches)
    write_marked(PAGE, Path(__file__).name, "\n".join(["", *table(model, batches, plain), "", ""]))


def table(model: torch.nn.Module, batches: list, plain: float) -> Iterator[str]:
    """A line for each number of forwards."""
    yield "| forwards | corner of the map | relative norm | loss |"
    yield "|--:|--:|--:|--:|"
    yield f"| without a map | – | – | {plain:.3f} |"
    before = 1  # the library adds PE once by itself
    for forwards in FORWARDS:
        add_positions(model, forwards - before)
        before = forwards
        squares: list = []

        def keep(seen: Observation, squares: list = squares) -> None:
            squares.append(squared_norms(seen))

        with observe(keep):
            loss = mean_loss(model, batches)
        yield f"| {forwards:,} | {corner(forwards):.2g} | {ratio_of(squares):.2g} | {loss:.3f} |"
    reached = math.ceil(math.sqrt(INVERSE_SCALE / RANK))
    yield ""
    yield (
        f"The corner is r·k²·s: with r = {RANK} it is 1 after {reached:,} forwards. The paper's "
        f"training has some {PAPERS_FORWARDS:,}\\nforwards, at whose end it is "
        f"{corner(PAPERS_FORWARDS):,.0f}. With Table 16's 1/s = 255 and r = 3 it is 1 after "
        f"{math.ceil(math.sqrt(255 / 3))} forwards."
    ).replace("\\n", "\n")


def corner(forwards: int) -> float:
    """The first entry of the map after so many forwards, from the positions alone."""
    return RANK * forwards**2 / INVERSE_SCALE


@torch.no_grad()
def add_positions(model: torch.nn.Module, times: int) -> None:
    """Add PE so many times to both factors of each map, as A.3 assigns them."""
    for layer in model.modules():
        if isinstance(layer, LmamLayer):
            w_a, w_b = layer.lora_w_a["default"], layer.lora_w_b["default"]
            pe = position_embedding(LENGTH, w_a)
            w_a.add_(times * pe[:, None])
            w_b.add_(times * pe)


@torch.no_grad()
def mean_loss(model: torch.nn.Module, batches: list) -> float:
    """The mean loss of some texts, in nats per token."""
    losses = [model(**batch, labels=batch["input_ids"]).loss for batch in batches]
    return float(torch.stack(losses).mean())


if __name__ == "__main__":
    main()
