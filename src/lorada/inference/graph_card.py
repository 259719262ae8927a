"""Writes the model card (README.md) of an exported graph: what goes in, what comes out, an example.

The examples run without lorada and without torch.
"""

from pathlib import Path
from typing import Any

from lorada.runs.folder.card_metadata import front_matter
from lorada.runs.folder.model_card import write_text
from lorada.runs.recipe import Recipe
from lorada.support.version import __version__

# Continues prompts with the likeliest tokens; ends a text as ``lorada generate`` does.
WRITES = '''\
import numpy as np
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}", padding_side="left")
onnxruntime.set_default_logger_severity(3)  # it warns of operations that it keeps as they are
session = onnxruntime.InferenceSession("{folder}/model.onnx")
names = [value.name for value in session.get_inputs()]


def generate(prompts, max_new_tokens):
    """Continue prompts with the likeliest tokens."""
    batch = tokenizer(prompts, return_tensors="np", padding=True)
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    empty = {{value.name: np.zeros([len(tokens), value.shape[1], 0, value.shape[3]], np.float32)
             for value in session.get_inputs() if value.name.startswith("input.cache")}}
    cache, written, ended = empty, [], np.zeros([len(tokens), 1], bool)
    for _ in range(max_new_tokens):
        positions = (mask.cumsum(1) - 1).clip(0)[:, -tokens.shape[1]:]
        inputs = {{"input_ids": tokens, "attention_mask": mask, "position_ids": positions, **cache}}
        logits, *after = session.run(None, {{name: inputs[name] for name in names}})
        cache = dict(zip(empty, after))
        tokens = np.where(ended, tokenizer.pad_token_id, logits[:, -1:].argmax(-1))
        ended |= np.isin(tokens, {ends})
        written.append(tokens)
        mask = np.concatenate([mask, np.ones_like(tokens)], 1)
        if ended.all():
            break
    return tokenizer.batch_decode(np.concatenate(written, 1), skip_special_tokens=True)


print(generate(["2 + 2 =", "A longer prompt, which is not padded:"], 8))'''

READS = """\
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
onnxruntime.set_default_logger_severity(3)  # it warns of operations that it keeps as they are
session = onnxruntime.InferenceSession("{folder}/model.onnx")
batch = tokenizer(["A text.", "Another, longer text."], return_tensors="np", padding=True)
names = [value.name for value in session.get_inputs()]
(logits,) = session.run(["logits"], {{name: batch[name] for name in names}})
print({answer})"""

NOTES = """
The graph has ONNX opset {opset}. It computes in {dtype}. {cache}

| input | type | shape |
|---|---|---|
{inputs}

| output | type | shape |
|---|---|---|
{outputs}

`attention_mask` is 1 for a token and 0 for padding. {padding}

Compared with torch on padded batches of random tokens when it was written: logits up to
{largest:.3g}, the largest difference {difference:.1e}{effect}.
"""
CACHE = """\
It reads new tokens behind a cache, and returns the cache behind them. With a
prompt goes an empty cache; then each output `output.cache…` is the input `input.cache…` of the next
call. `attention_mask` covers the tokens of the cache too."""
LEFT = "Prompts are padded on the left.\n`position_ids` count the tokens of a text from 0."
EITHER = "Texts may be padded on either side."


def example(folder: str, written: dict[str, Any], ends: list[int]) -> str:
    """Python that runs the graph in a folder; the other arguments are ``write_graph_card``'s."""
    if _is_cached(written):
        return WRITES.format(folder=folder, ends=ends)
    labels = written["labels"]
    answer = f"[{labels}[i] for i in logits.argmax(-1)]" if labels else "logits[:, 0]"
    return READS.format(folder=folder, answer=answer)


def _is_cached(written: dict[str, Any]) -> bool:
    return any("cache" in name for name in written["inputs"])


def write_graph_card(
    folder: Path,
    recipe: Recipe,
    task_type: str,
    result: dict[str, Any],
    written: dict[str, Any],
    ends: list[int],
) -> None:
    """Write the card of a graph.

    Args:
        folder: the folder of the graph.
        recipe: the recipe of its run.
        task_type: PEFT's name for the model's task, such as ``CAUSAL_LM``.
        result: the ``result.json`` of its run.
        written: what ``export_graph`` returns.
        ends: the tokens that end a text.
    """
    inside = [*written["merged"], *written["adapter"]]
    title = f"{recipe.model} after {recipe.method}, as a graph"
    cached = _is_cached(written)
    effect = written["effect"]
    write_text(
        folder,
        recipe,
        front_matter(recipe, "onnx", task_type, title, result),
        title=title,
        made=f"Written by `lorada export --format onnx` {__version__}: the whole\n"
        f"model{' with ' if inside else ''}{' and '.join(inside)}, in `model.onnx` and "
        "`model.onnx.data`.",
        code=example("path/to/this/folder", written, ends),
        notes=NOTES.format(
            opset=written["opset"],
            dtype=written["dtype"],
            cache=CACHE if cached else "",
            inputs=_table(written["inputs"]),
            outputs=_table(written["outputs"]),
            padding=LEFT if cached else EITHER,
            largest=written["largest"],
            difference=written["difference"],
            effect="" if effect is None else f"; the adapter changes them by up to {effect:.3g}",
        ),
    )


def _table(values: dict[str, tuple[str, list[int | str]]]) -> str:
    return "\n".join(
        f"| `{name}` | {dtype} | ({', '.join(map(str, shape))}) |"
        for name, (dtype, shape) in values.items()
    )
