"""Answer questions by the likelihood of their candidates with lm-eval, and leave stamps.

python score_with_lm_eval.py --model DIR --adapter DIR --task TASK.yaml --batch 32
"""

import argparse

import stamps
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "adapter", "task"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    model = HFLM(
        pretrained=given.model, peft=given.adapter, dtype="float32", device="cpu",
        batch_size=given.batch,
    )  # fmt: skip
    begin = stamps.now()
    found = simple_evaluate(
        model, tasks=[given.task], task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    end = stamps.now()
    (samples,) = found["samples"].values()
    answers = []
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        scores = [float(one[0]) for one in sample["filtered_resps"]]  # sums of log-probabilities
        answers.append(scores.index(max(scores)))
    made = {"begin": begin, "end": end, "answers": answers}
    stamps.write(made, "lm_eval", "transformers", "torch", "peft")


if __name__ == "__main__":
    main()
