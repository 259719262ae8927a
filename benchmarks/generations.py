"""What a trained LoRaDA-LA answers, in the form of the paper's appendix A.4.

    python benchmarks/generations.py --data-dir DIR

Trains it on BoolQ and OpenBookQA with LLM-Adapters' prompts (some ten minutes on one core, if the
run is not there yet), asks questions of our own, which are in no data set, before and after, and
writes the answers into docs/paper.md.
"""

import argparse
from pathlib import Path

from lorada.experiments import own_process
from lorada.runs.folder.result import RESULT_FILE
from lorada.runs.inference.generate import generate
from lorada.runs.inference.load import Run, load_run
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train
from lorada.support.files import write_whole
from lorada.tasks.llm_adapters_prompt import answered, evaluation_prompt

PAGE = Path(__file__).parents[1] / "docs" / "paper.md"
BEGIN, END = "<!-- written by benchmarks/generations.py -->\n", "<!-- until here -->"
OVERRIDES = [
    "lmam.length=64", "lora.r=1", "lora.lora_alpha=2", "bottleneck.rank=1", "protocol=generate",
    "train_on=own", "max_length=256", "train_rows=1600", "max_steps=100", "learning_rate=1e-3",
    "per_device_train_batch_size=8", "train_sampling_strategy=group_by_length", "report_to=[]",
    "seed=1",
]  # fmt: skip

# Our own words, in the layout of LLM-Adapters' instructions, and the right answer.
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
    asked = [
        (f"Please answer the following question with true or false, question: {question}?"
         "\n\nAnswer format: true/false", right)
        for question, right in BOOLQ.items()
    ]  # fmt: skip
    for (question, *options), right in OPENBOOKQA.items():
        listed = " ".join(f"Answer{i}: {text}" for i, text in enumerate(options, 1))
        form = "/".join(f"answer{i}" for i in range(1, len(options) + 1))
        text = f"Please choose the correct answer to the question: {question}\n\n{listed}\n\n"
        asked.append((f"{text}Answer format: {form}", f"answer{right}"))
    return asked


def trained(folder: Path, data_dir: str | None) -> Run:
    """The run, trained now if it is not there."""
    if not (folder / RESULT_FILE).is_file():
        fixed = {"model": "smollm2-135m", "method": "lorada_la", "task": "boolq,openbookqa"}
        options = {**fixed, "output": str(folder), "data_dir": data_dir}
        own_process.call(train, load_recipe(None, OVERRIDES, options))
    return load_run(folder)


def first_line(output: str) -> str:
    """What is shown of an answer: its block, on one line."""
    return " ".join(answered(output).split()) or "(nothing)"


def page(run: Run) -> str:
    """Questions and answers as Markdown."""
    asked = instructions()
    prompts = [evaluation_prompt(instruction) for instruction, _ in asked]
    after = [first_line(output) for output in generate(run, prompts)]
    with run.model.disable_adapter():
        before = [first_line(output) for output in generate(run, prompts)]
    text = "\n"
    for (instruction, right), one, other in zip(asked, after, before, strict=True):
        text += f"> **Instruction:** {' '.join(instruction.split())}\n>\n"
        text += f"> **LoRaDA-LA:** {one} (right: {right})\n>\n"
        text += f"> **SmolLM2-135M without it:** {other[:120]}\n\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--output", type=Path, default=Path("runs/generations"))
    given = parser.parse_args()
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    text = page(trained(given.output, given.data_dir))
    write_whole(PAGE, f"{before}{BEGIN}{text}{END}{after}")
    print(text)


if __name__ == "__main__":
    main()
