"""Writes the logs beside it, by a task and a model that need no network: pip install inspect-ai."""

import random

from inspect_ai import Task, eval, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelAPI, ModelOutput, modelapi
from inspect_ai.scorer import Score, accuracy, exact, mean, scorer
from inspect_ai.solver import generate, solver


@modelapi(name="toy")
def toy():
    class Toy(ModelAPI):
        """Adds rightly as often as ``quality`` says."""

        def __init__(
            self, model_name, base_url=None, api_key=None, config=None, quality=0.5, seed=0
        ):
            super().__init__(model_name)
            self.quality = quality
            self.random = random.Random(seed)

        async def generate(self, input, tools, tool_choice, config):
            a, b = input[-1].text.rstrip("=").split("+")
            right = str(int(a) + int(b))
            answer = right if self.random.random() < self.quality else f"{right}0"
            return ModelOutput.from_content(self.model_name, answer)

        async def count_tokens(self, input, config=None):
            return 5

    return Toy


@scorer(metrics=[accuracy()])
def grade():
    async def score(state, target):
        answer = state.output.completion
        if answer == target.text:
            return Score(value="C")
        return Score(value="P" if answer.startswith(target.text) else "I")

    return score


@scorer(metrics={"*": [mean()]})
def parts():
    async def score(state, target):
        answer = state.output.completion
        return Score(value={"right": float(answer == target.text), "letters": len(answer)})

    return score


@solver
def fails_on(sample_id):
    async def solve(state, generate):
        if state.sample_id == sample_id:
            raise RuntimeError("no answer")
        return state

    return solve


@task
def sums(fails: str = "", several: bool = False):
    samples = [Sample(input=f"1+{b}=", target=str(1 + b), id=f"add{b}") for b in range(3)]
    scorers = [grade(), parts()] if several else exact()
    return Task(dataset=samples, solver=[fails_on(fails), generate()], scorer=scorers)


def write_log(log_dir, model, model_args=None, log_format="eval", **options):
    task_options = {name: options.pop(name) for name in ("fails", "several") if name in options}
    eval(
        sums(**task_options), model=f"toy/{model}", model_args=model_args or {}, log_dir=log_dir,
        log_format=log_format, display="none", max_samples=1, log_realtime=False, **options,
    )  # fmt: skip


for method, quality in (("lora", 0.9), ("ia3", 0.3)):
    for seed in (1, 2):
        write_log(f"seeds/{method}-{seed}", method, {"quality": quality, "seed": seed})
write_log("epochs", "small", {"quality": 0.3}, epochs=2)
write_log("epochs", "large", {"quality": 0.9}, epochs=2)
write_log("several", "small", {"seed": 1}, several=True, limit=2, log_format="json")
write_log("one_error", "small", fails="add1", fail_on_error=False)
write_log("failed", "small", fails="add1")
