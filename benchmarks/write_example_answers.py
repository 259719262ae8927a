"""Write what LoRaDA-LA answers before and after training, as the paper's appendix A.4 does.

    python benchmarks/write_example_answers.py --data-dir DIR

Trains on BoolQ and OpenBookQA with LLM-Adapters' prompts, unless the run is there already (some ten
minutes on one core). Asks questions of our own, which are in no data set, and writes the answers
into docs/studies/tables.md.
"""

import argparse
from functools import partial
from pathlib import Path

from library.page import write_marked

from lorada.compare.jobs.job import Job
from lorada.compare.jobs.pool import Workers
from lorada.compare.jobs.queue import run_queue
from lorada.data.benchmarks.published_prompts import answered, evaluation_prompt
from lorada.inference.generate import generate
from lorada.inference.load import Run, load_run
from lorada.runs.result import RESULT_FILE
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

PAGE = Path(__file__).parents[1] / "docs" / "studies" / "tables.md"
OVERRIDES = [
    "lmam.length=64", "lora.r=1", "lora.lora_alpha=2", "bottleneck.rank=1", "protocol=generate",
    "train_on=own", "max_length=256", "train_rows=1600", "max_steps=100", "learning_rate=1e-3",
    "per_device_train_batch_size=8", "train_sampling_strategy=group_by_length", "report_to=[]",
    "seed=1",
]  # fmt: skip

# Questions of our own and their right answers, to be asked in the form of LLM-Adapters.
BOOLQ = {
    "can a whale breathe under water": "false",
    "is a tomato plant able to grow in a greenhouse": "true",
    "does the moon give light of its own": "false",
    "is butter made of milk": "true",
}
OPENBOOKQA = {
    ("A metal spoon left in a hot pot of soup becomes", "colder", "hot", "magnetic", "soft"): 2,
    ("Which of these helps a rabbit to notice a fox early?", "big ears", "soft fur",
     "a short tail", "long teeth"): 1,
    ("Ice cubes in a glass of warm juice will", "grow", "burn", "melt", "sink into the table"): 3,
}  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """Every question as an instruction, with its right answer."""
    found = [
        (f"Please answer the following question with true or false, question: {question}?"
         "\n\nAnswer format: true/false", right)
        for question, right in BOOLQ.items()
    ]  # fmt: skip
    for (question, *options), right in OPENBOOKQA.items():
        listed = " ".join(f"Answer{i}: {text}" for i, text in enumerate(options, 1))
        form = "/".join(f"answer{i}" for i in range(1, len(options) + 1))
        text = f"Please choose the correct answer to the question: {question}\n\n{listed}\n\n"
        found.append((f"{text}Answer format: {form}", f"answer{right}"))
    return found


def trained_run(folder: Path, data_dir: str | None) -> Run:
    """Load the run, and train it before if it is not there."""
    if not (folder / RESULT_FILE).is_file():
        fixed = {"model": "smollm2-135m", "method": "lorada_la", "task": "boolq,openbookqa"}
        options = {**fixed, "output": str(folder), "data_dir": data_dir}
        work = partial(train, load_recipe(None, OVERRIDES, options))
        job = Job(folder.name, work, folder, (folder / RESULT_FILE).is_file)
        run_queue([job], Workers(), report=print)
    return load_run(folder)


def shown(output: str) -> str:
    """What the page shows of an output: the answer, on one line."""
    return " ".join(answered(output).split()) or "(nothing)"


def answers(run: Run) -> str:
    """Questions and answers in Markdown."""
    asked = instructions()
    prompts = [evaluation_prompt(instruction) for instruction, _ in asked]
    after = [shown(output) for output in generate(run, prompts)]
    with run.model.disable_adapter():
        before = [shown(output) for output in generate(run, prompts)]
    text = "\n"
    for (instruction, right), trained, untrained in zip(asked, after, before, strict=True):
        text += f"> **Instruction:** {' '.join(instruction.split())}\n>\n"
        text += f"> **LoRaDA-LA:** {trained} (right: {right})\n>\n"
        text += f"> **SmolLM2-135M without it:** {untrained[:120]}\n\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--output", type=Path, default=Path("runs/generations"))
    given = parser.parse_args()
    text = answers(trained_run(given.output, given.data_dir))
    write_marked(PAGE, Path(__file__).name, text)
    print(text)


if __name__ == "__main__":
    main()
