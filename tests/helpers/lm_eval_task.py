"""A task of lm-evaluation-harness whose rows need no hub, and its score by hand."""

import math

import torch
import yaml
from folders import byte_tokenizer, rows_file

ROWS = [
    {"question": f"{a} and {b} make", "answer": "x" * a + str(a + b)}
    for a in range(1, 5)
    for b in (1, 20, 300)
]
TASK = {
    "task": "makes",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "loglikelihood",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    ],
    "metadata": {"version": 1.5},
}

# Candidates of several lengths, in letters and in bytes.
CHOICES = [
    {"prompt": f"{n} is", "candidates": ["x" * (n % 5 + 1), "é" * (n % 3 + 1), "yy zz"],
     "answer": n % 3}
    for n in range(40)
]  # fmt: skip
PICKS = {
    "task": "picks",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "candidates",
    "doc_to_target": "answer",
    "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes")],
}


def task_file(folder):
    """Write the tasks and their rows into a folder."""
    for task, rows in ((PICKS, CHOICES), (TASK, ROWS)):
        name = task["task"]
        files = {"data_files": {"test": str(rows_file(folder / f"{name}.jsonl", rows))}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**task, "dataset_kwargs": files}))
    return folder / "makes.yaml"


@torch.no_grad()
def perplexity_by_hand(model, rows):
    """exp of the mean over rows of -log p(answer | question), one row at a time."""
    total, tokenizer = 0.0, byte_tokenizer()
    for row in rows:
        question = tokenizer(row["question"])["input_ids"]
        answer = tokenizer(row["answer"])["input_ids"]
        ids = torch.tensor([question + answer])
        # lm-eval never shows the last token, so a map at the end does not count it either.
        log_p = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)[0, len(question) - 1 :]
        total -= float(log_p.gather(-1, torch.tensor(answer)[:, None]).sum())
    return math.exp(total / len(rows))
