"""Writes the model card (README.md) of an exported graph: what goes in, what comes out, an example.

The examples run without lorada, and those of ONNX also without torch.
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

# The same for a program of ExecuTorch, whose runtime in Python takes tensors of torch.
WRITES_PROGRAM = '''\
import torch
from executorch.runtime import Runtime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}", padding_side="left")
method = Runtime.get().load_program("{folder}/model.pte").load_method("forward")


def generate(prompts, max_new_tokens):
    """Continue prompts with the likeliest tokens."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    cache = [torch.zeros(len(tokens), *shape) for shape in {cache}]
    written, ended = [], torch.zeros(len(tokens), 1, dtype=torch.bool)
    for _ in range(max_new_tokens):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1]:].contiguous()
        logits, *cache = method.execute([{inputs}, *cache])
        tokens = logits[:, -1:].argmax(-1).masked_fill(ended, tokenizer.pad_token_id)
        ended |= torch.isin(tokens, torch.tensor({ends}))
        written.append(tokens)
        cache = [part.clone() for part in cache]  # the next call writes over its outputs
        mask = torch.cat([mask, torch.ones_like(tokens)], 1)
        if ended.all():
            break
    return tokenizer.batch_decode(torch.cat(written, 1), skip_special_tokens=True)


print(generate(["2 + 2 =", "A longer prompt, which is not padded:"], 8))'''

READS_PROGRAM = """\
from executorch.runtime import Runtime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
method = Runtime.get().load_program("{folder}/model.pte").load_method("forward")
batch = tokenizer(["A text.", "Another, longer text."], return_tensors="pt", padding=True)
(logits,) = method.execute([batch["input_ids"], batch["attention_mask"]])
print({answer})"""

NOTES = """
{kind}
It computes in {dtype}. {cache}

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
    program = written["format"] == "executorch"
    labels = written["labels"]
    answer = f"[{labels}[i] for i in logits.argmax(-1)]" if labels else "logits[:, 0]"
    if not _is_cached(written):
        return (READS_PROGRAM if program else READS).format(folder=folder, answer=answer)
    if not program:
        return WRITES.format(folder=folder, ends=ends)
    variables = {"input_ids": "tokens", "attention_mask": "mask", "position_ids": "positions"}
    shapes = [
        (shape[1], 0, shape[3]) for name, (_, shape) in written["inputs"].items() if "cache" in name
    ]
    return WRITES_PROGRAM.format(
        folder=folder,
        ends=ends,
        inputs=", ".join(variables[name] for name in written["inputs"] if name in variables),
        cache=f"{[shapes[0]]} * {len(shapes)}" if len({*shapes}) == 1 else shapes,
    )


def _is_cached(written: dict[str, Any]) -> bool:
    return any("cache" in name for name in written["inputs"])


def _kind(written: dict[str, Any]) -> str:
    """A sentence on the format."""
    if written["format"] == "onnx":
        return f"The graph has ONNX opset {written['opset']}."
    most = written["bounds"]
    text = f"It takes up to {most['batch']} texts and {most['tokens']} new tokens in one call"
    if _is_cached(written):
        text += f", behind up to {most['past']}"
    return (
        f"The program is for ExecuTorch, with XNNPACK; inputs and outputs have an order.\n{text}."
    )


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
    files = "`model.onnx` and `model.onnx.data`" if written["opset"] else "`model.pte`"
    effect = written["effect"]
    write_text(
        folder,
        recipe,
        front_matter(recipe, written["format"], task_type, title, result),
        title=title,
        made=f"Written by `lorada export --format {written['format']}` {__version__}: the whole\n"
        f"model{' with ' if inside else ''}{' and '.join(inside)}, in {files}.",
        code=example("path/to/this/folder", written, ends),
        notes=NOTES.format(
            kind=_kind(written),
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
