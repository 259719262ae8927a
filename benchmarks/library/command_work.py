"""The work of lorada's commands, in a form that can be repeated and timed within one process.

A work has ``ready``, which is not timed, ``go``, which is and returns what came out, and ``alike``,
within which two ways of computing it must give the same.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from transformers import PrinterCallback, set_seed

from lorada.runs.data.dataset import encode_rows
from lorada.runs.data.rows import load_rows
from lorada.runs.inference.evaluate import score
from lorada.runs.inference.load import load_run
from lorada.runs.prepare import prepare_training
from lorada.runs.recipe import Recipe, load_recipe
from lorada.runs.serving.engine import Ask
from lorada.runs.serving.served import open_served
from lorada.runs.training.setup import set_up
from lorada.support.files import write_atomic
from lorada.tuners.lmam import bake

ROWS = "builtin:syllogisms_{}.jsonl"
# No step changes much, so the mean loss does not depend on the order of the rows.
USUAL = ("report_to=[]", "save_strategy=no", "num_train_epochs=1", "learning_rate=1e-5")
SHORT = ("per_device_train_batch_size=8", "train_sampling_strategy=group_by_length")
ALONE = ("per_device_train_batch_size=1",)
PACKED = ("per_device_train_batch_size=1", "packing=true", "max_length=512")
FORMS = ("All {} are {}", "No {} are {}", "Some {} are {}", "Some {} are not {}")
END = 16  # each token whose number this divides ends an answer, so that answers differ in length


def recipe_of(folder: Path, *settings: str) -> Recipe:
    given = {"model": "smollm2-135m", "method": "lora+lmam", "data": ROWS.format("train")}
    return load_recipe(None, [*USUAL, *settings], {**given, "output": str(folder / "run")})


def disturb(model: nn.Module) -> None:
    """Let all parts of the adapter change what the model says, as after a long training."""
    draw = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.add_(torch.randn(weight.shape, generator=draw), alpha=0.02)


class Train:
    """The steps of ``lorada train``, from the same weights each time."""

    def __init__(self, folder: Path, *settings: str) -> None:
        prepared = prepare_training(recipe_of(folder, *settings))
        self.trainer = set_up(prepared, [], quiet=True).trainer
        self.trainer.remove_callback(PrinterCallback)
        self.model = self.trainer.model
        disturb(self.model)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.trained]

    def ready(self) -> None:
        """Put the weights back."""
        for weight, at_start in zip(self.trained, self.start, strict=True):
            weight.data.copy_(at_start)
        self.trainer.optimizer = self.trainer.lr_scheduler = None
        set_seed(0)

    def go(self) -> dict[str, Any]:
        """Train for an epoch."""
        loss, history = self.trainer.train().training_loss, self.trainer.state.log_history
        norms = [line["grad_norm"] for line in history if "grad_norm" in line]
        return {"loss": loss, "gradients": sum(norms) / max(1, len(norms))}

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Dropout runs and drops nothing, since two ways to draw cannot give the same loss."""
        found = [(m, m.p) for m in self.model.modules() if isinstance(m, nn.Dropout)]
        for module, _ in found:
            module.p = 1e-9
        usual, self.trainer.args.logging_steps = self.trainer.args.logging_steps, 1
        yield
        self.trainer.args.logging_steps = usual
        for module, p in found:
            module.p = p


class Evaluate:
    """The scoring of rows by ``lorada evaluate``."""

    alike = nullcontext

    def __init__(self, folder: Path, kind: str, count: int) -> None:
        run = load_run(folder / "run")
        self.run = replace(run, recipe=run.recipe.model_copy(update={"eval_batch_size": 8}))
        self.model = self.run.model
        self.rows = load_rows(rows_file(folder, kind)).part(range(count))
        disturb(self.model)
        self.model.generation_config.eos_token_id = list(range(0, len(run.tokenizer), END))

    def ready(self) -> None:
        """Nothing."""

    def go(self) -> dict[str, Any]:
        """Score all rows."""
        with torch.no_grad():
            _, lines = score(self.run, self.rows)
        losses = [line["loss"] for line in lines]
        return {"loss": sum(losses) / len(losses), "answers": [line["answer"] for line in lines]}


class Serve:
    """Requests that come to ``lorada serve`` at one time; HTTP is left out."""

    alike = nullcontext

    def __init__(self, folder: Path, requests: int, tokens: int) -> None:
        served = open_served([folder / "run"])["run"]
        self.model, self.engine = served.run.model, served.engine
        self.engine._config.eos_token_id = -1  # every answer has as many tokens as it may
        disturb(self.model)
        bake(self.model)
        rows = load_rows(ROWS.format("test")).rows[: requests + 1]
        self.asks = [Ask(served.run.tokenizer.encode(row["prompt"]), tokens) for row in rows]

    def ready(self) -> None:
        """Make a batch anew, without what the last one has cached of the same prompts."""
        self.engine.stop()
        self.engine._workers.clear()
        asyncio.run(self.answers([Ask(self.asks[-1].ids, 2)]))

    def go(self) -> dict[str, Any]:
        """Ask for all answers at once."""
        return {"answers": asyncio.run(self.answers(self.asks[:-1]))}

    async def answers(self, asks: list[Ask]) -> list[list[int]]:
        """The tokens of each answer."""

        async def one(ask: Ask) -> list[int]:
            return [list(progress.ids) async for progress in self.engine.write(ask)][-1]

        return await asyncio.gather(*map(one, asks))


class Encode:
    """What ``lorada train`` does before its first step: rows become token ids."""

    alike = nullcontext

    def __init__(self, folder: Path, count: int) -> None:
        datasets.config.HF_DATASETS_CACHE = folder / "tokens"
        self.prepared = prepare_training(recipe_of(folder))
        rows = self.prepared.rows
        self.rows = rows.part(i % len(rows.rows) for i in range(count))

    def ready(self) -> None:
        """Nothing."""

    def go(self) -> dict[str, Any]:
        """Encode all rows."""
        known = self.prepared
        found = encode_rows(self.rows, known.recipe, known.tokenizer, known.kind)
        return {"answers": [sum(ids) for ids in found["input_ids"]]}


def rows_file(folder: Path, kind: str) -> str:
    """Rows with answers; or with candidates, which are the four forms of a conclusion."""
    path, rows = folder / f"{kind}.jsonl", load_rows(ROWS.format("test")).rows
    if kind == "candidates":
        for number, row in enumerate(rows):
            facts, _, asked = row["prompt"].partition("\nDoes it logically follow that: ")
            words = asked.partition("?")[0].replace(" not ", " ").split()
            forms = [" " + form.format(words[1], words[3]) for form in FORMS]
            rows[number] = {"prompt": facts + "\nSo:", "candidates": forms, "answer": 0}
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@dataclass(frozen=True)
class Command:
    """A command that is timed.

    Attributes:
        title: its name in the table.
        work: makes the work, of which there is more for a larger number.
        switches: what is switched off.
    """

    title: str
    work: Callable[[Path, int], Any]
    switches: str


COMMANDS = {
    "short": Command(
        "`train`, short rows", lambda f, n: Train(f, *SHORT, f"train_rows={8 * n}"),
        "lora lora_alone labelled lengths order keys plain packed_step",
    ),
    "alone": Command(
        "`train`, one short row a batch", lambda f, n: Train(f, *ALONE, f"train_rows={3 * n}"),
        "sliced",
    ),
    "bfloat16": Command(
        "`train`, short rows in bfloat16",
        lambda f, n: Train(f, *SHORT, "dtype=bfloat16", f"train_rows={8 * n}"), "plain lora",
    ),
    "packed": Command(
        "`train`, packed rows", lambda f, n: Train(f, *PACKED, f"train_rows={11 * n}"),
        "lora lora_alone labelled keys packed_step sliced",
    ),
    "answers": Command(
        "`evaluate`, answers", lambda f, n: Evaluate(f, "answers", 12 * n),
        "keys refilled pairs grouped labelled lora",
    ),
    "candidates": Command(
        "`evaluate`, candidates", lambda f, n: Evaluate(f, "candidates", 8 * n),
        "shared packed_attention keys pairs lora sliced",
    ),
    "serve": Command(
        "`serve`, 8 requests", lambda f, n: Serve(f, 8, 6 * n),
        "packed_attention packed_step packed_term pairs finished sliced keys lora",
    ),
    "encode": Command(
        "`train`, before its first step", lambda f, n: Encode(f, 1250 * n), "cache"
    ),
}  # fmt: skip
