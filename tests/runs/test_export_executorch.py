"""``lorada export --format executorch``: the program writes and answers what the run does."""

import json
import re

import pytest
import torch
from folders import ROWS, bert_folder, llama_folder, rows_file

from lorada.runs.inference.generate import continue_prompts
from lorada.runs.inference.load import load_run
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train

pytest.importorskip("executorch", reason="executorch is missing: pip install 'lorada[executorch]'")
pytestmark = pytest.mark.slow

TINY = [
    "training.per_device_train_batch_size=8", "training.report_to=[]", "max_steps=4",
    "max_length=32", "max_grad_norm=0", "lmam.length=8",
]  # fmt: skip
PROMPTS = ["2 + 2 =", "3", "4 + 1 = 5, 2 + 1 = 3, 0 + 3 ="]


def exported(call, place, method, model, rows, *more):
    """A run, the folder of its program, and what was printed about it."""
    data = rows_file(place / "rows.jsonl", rows)
    fixed = {"method": method, "model": str(model), "data": str(data), "output": str(place / "run")}
    run = train(load_recipe(None, [*TINY, *more], fixed), quiet=True).run
    target = place / "program"
    code, out, err = call("export", run, target, "--format", "executorch", "--json")
    assert code == 0, err
    written = json.loads(out)
    # The adapter does something, so the small difference is not for nothing.
    assert written["difference"] < 1e-4 * written["effect"]
    return run, target, written


def example_in(target):
    """The Python in the card of a program."""
    code = re.search(r"```python\n(.*?)```", (target / "README.md").read_text(), flags=re.S)[1]
    return code.replace("path/to/this/folder", str(target))


def test_the_program_of_a_decoder_writes_what_generate_does(tmp_path, call):
    model = llama_folder(tmp_path / "llama", initializer_range=0.2, num_hidden_layers=1)
    run, target, written = exported(
        call, tmp_path, "lorada_la", model, ROWS, "learning_rate=0.01"
    )  # fmt: skip
    assert (written["merged"], sorted(written["adapter"])) == (["LORA"], ["BOTTLENECK", "LMAM"])
    names = {}
    exec(example_in(target), names)
    expected = continue_prompts(load_run(run), PROMPTS, 12)
    assert names["generate"](PROMPTS, 12) == expected
    assert len(set(expected)) > 1


def test_the_program_of_a_classifier_answers_as_the_run_does(tmp_path, call):
    model = bert_folder(tmp_path / "bert", initializer_range=0.2, num_hidden_layers=1)
    rows = [{"text": row["prompt"], "label": "even" if i % 2 else "odd"}
            for i, row in enumerate(ROWS)]  # fmt: skip
    run, target, _ = exported(call, tmp_path, "lora+lmam", model, rows, "learning_rate=0.1")
    names = {}
    exec(example_in(target), names)
    batch = names["tokenizer"](["3 + 1 =", "A longer text."], return_tensors="pt", padding=True)
    feed = {name: batch[name] for name in ("input_ids", "attention_mask")}
    (logits,) = names["method"].execute([*feed.values()])
    with torch.no_grad():
        expected = load_run(run).model(**feed).logits
    torch.testing.assert_close(logits, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
