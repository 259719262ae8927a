"""Invented rows in the shape of LLM-Adapters' files, in a local data folder."""

from pathlib import Path

from folders import llama_folder

from lorada.runs.recipe import Recipe
from lorada.training.load_recipe import load_recipe

WORDS = {
    "boolq": ("true", "false"),
    "piqa": ("solution1", "solution2"),
    "siqa": ("answer1", "answer2", "answer3"),
    "hellaswag": ("ending1", "ending2", "ending3", "ending4"),
    "winogrande": ("option1", "option2"),
    "arc_easy": ("answer1", "answer2", "answer3", "answer4"),
}


def question(text: str, options: tuple[str, ...], right: int) -> dict[str, str]:
    """A row of a commonsense task."""
    return {
        "instruction": f"{text}\n\nAnswer format: {'/'.join(options)}",
        "input": "",
        "output": f"the correct answer is {options[right]}",
        "answer": options[right],
    }


ROW = question("is snow\nwarm?", ("true", "false"), 1)


def problem(text: str, answer: str, output: str) -> dict[str, str]:
    """A row of an arithmetic task."""
    return {"instruction": text, "input": "", "output": output, "answer": answer}


def recipe(place: Path, data: Path, *settings: str, task: str = "boolq") -> Recipe:
    """Full fine-tuning of a tiny LLaMA on a task, with rows of a local data folder."""
    folder = llama_folder(place / "llama", max_position_embeddings=640)
    fixed = {"model": str(folder), "task": task, "data_dir": str(data), "method": "full",
             "output": str(place / "run")}  # fmt: skip
    common = ["report_to=[]", "save_strategy=no", "training.learning_rate=3e-3", "max_length=512"]
    return load_recipe(None, [*common, *settings], fixed)
