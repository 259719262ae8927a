"""The texts of an exported graph's card: what goes in, what comes out, an example.

The examples run without lorada and without torch.
"""

from typing import Any

from lorada.support.version import __version__

OPEN = """\
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder"SIDE)
onnxruntime.set_default_logger_severity(3)  # it warns of operations that it keeps as they are
session = onnxruntime.InferenceSession("path/to/this/folder/model.onnx")
names = [value.name for value in session.get_inputs()]
"""
# Continues prompts with the likeliest tokens; ends a text as ``lorada generate`` does.
WRITES = '''

def generate(prompts, max_new_tokens):
    """Continue prompts with the likeliest tokens."""
    READ
    tokens, mask = batch["input_ids"], batch["attention_mask"]
    empty = {value.name: np.zeros([len(tokens), value.shape[1], 0, value.shape[3]], np.float32)
             for value in session.get_inputs() if value.name.startswith("input.cache")}
    cache, written, ended = empty, [], np.zeros([len(tokens), 1], bool)
    for _ in range(max_new_tokens):
        positions = (mask.cumsum(1) - 1).clip(0)[:, -tokens.shape[1]:]
        inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions, **cache}
        logits, *after = session.run(None, {name: inputs[name] for name in names})
        cache = dict(zip(empty, after))
        tokens = np.where(ended, tokenizer.pad_token_id, logits[:, -1:].argmax(-1))
        ended |= np.isin(tokens, ENDS)
        written.append(tokens)
        mask = np.concatenate([mask, np.ones_like(tokens)], 1)
        if ended.all():
            break
    return tokenizer.batch_decode(np.concatenate(written, 1), skip_special_tokens=True)


print(generate(["2 + 2 =", "A longer prompt, which is not padded:"], 8))'''

READ = 'batch = tokenizer(prompts, return_tensors="np", padding=True)'
# The same where the tokenizer ends every text, and a prompt must not be ended.
READ_WITHOUT_END = """\
whole = tokenizer(prompts)["input_ids"]
    batch = tokenizer.pad({"input_ids": [ids[:-1] for ids in whole]}, return_tensors="np")"""

READS = """\
batch = tokenizer(["A text.", "Another, longer text."], return_tensors="np", padding=True)
(logits,) = session.run(["logits"], {name: batch[name] for name in names})
print(ANSWER)"""

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


def writing_example(ends: str, *, ended: bool) -> str:
    """The Python that writes texts with a graph.

    Args:
        ends: the tokens that end a text, as Python.
        ended: whether the tokenizer adds such a token to every text.
    """
    read = READ_WITHOUT_END if ended else READ
    start = OPEN.replace("SIDE", ', padding_side="left"')
    return "import numpy as np\n" + start + WRITES.replace("ENDS", ends).replace("READ", read)


def card_texts(
    written: dict[str, Any], ends: list[int] | None, *, ended: bool = False
) -> dict[str, str]:
    """The texts of a card by what ``export_graph`` returns.

    Args:
        written: what it returns.
        ends: tokens that end texts; None for a graph that answers with a head.
        ended: whether the tokenizer adds such a token to every text.
    """
    effect, labels = written["effect"], written["labels"]
    inside = " and ".join([*written["merged"], *written["adapter"]])
    if ends is not None:
        code = writing_example(str(ends), ended=ended)
    else:
        answer = f"[{labels}[i] for i in logits.argmax(-1)]" if labels else "logits[:, 0]"
        code = OPEN.replace("SIDE", "") + READS.replace("ANSWER", answer)
    texts = {
        **{name: _table(written[name]) for name in ("inputs", "outputs")},
        "cache": "" if ends is None else CACHE,
        "padding": "Pad texts as the tokenizer does." if ends is None else LEFT,
        "effect": "" if effect is None else f"; the adapter changes them by up to {effect:.3g}",
    }
    return {
        "made": f"Written by `lorada export --format onnx` {__version__}: the whole\nmodel"
        f"{' with ' if inside else ''}{inside}, in `model.onnx` and "
        "`model.onnx.data`.",
        "code": code,
        "notes": NOTES.format_map(written | texts),
    }


def _table(values: dict[str, tuple[str, list[int | str]]]) -> str:
    return "\n".join(
        f"| `{name}` | {dtype} | ({', '.join(map(str, shape))}) |"
        for name, (dtype, shape) in values.items()
    )
