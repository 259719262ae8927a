"""The loss of a step does not depend on how its rows are shared out."""

import pytest
import torch
from conftest import assert_close
from folders import ROWS, bart_folder, bert_folder, llama_folder, rows_file

from lorada.run.recipe import load_recipe
from lorada.run.train import train

LABELS = [{"text": "ab" * (i % 4 + 1), "label": "even" if i % 2 else "odd"} for i in range(12)]
SCORES = [{"text": row["text"], "score": i / 4} for i, row in enumerate(LABELS)]
QUIET = {"attention_dropout": 0.0}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CASES = {
    "labels, bert": (bert_folder, NO_DROPOUT, LABELS),
    "labels, llama": (llama_folder, QUIET, LABELS),
    "scores, bert": (bert_folder, NO_DROPOUT, SCORES),
    "texts, bart": (bart_folder, {"dropout": 0.0}, ROWS),
    "texts, llama": (llama_folder, QUIET, ROWS),
}


@pytest.mark.parametrize("case", CASES)
def test_accumulated_batches_have_the_loss_and_the_gradient_of_one(case, tmp_path):
    build, changes, rows = CASES[case]
    model, data = build(tmp_path / "model", **changes), rows_file(tmp_path / "rows.jsonl", rows)
    histories = []
    for batch, accumulated in ((4, 1), (2, 2), (1, 4)):
        settings = [
            f"per_device_train_batch_size={batch}", f"gradient_accumulation_steps={accumulated}",
            "max_steps=2", "logging_steps=1", "training.report_to=[]", "max_length=32",
            "lora.lora_dropout=0", "lora.target_modules=all-linear",
        ]  # fmt: skip
        fixed = {"method": "lora", "model": str(model), "data": str(data)}
        output = {"output": str(tmp_path / f"run-{batch}")}
        result = train(load_recipe(None, settings, {**fixed, **output}), quiet=True).result
        histories.append([[e["loss"], e["grad_norm"]] for e in result["history"]])
    for history in histories[1:]:
        assert_close(torch.tensor(history), torch.tensor(histories[0]))
