"""Model cards of what a run leaves: how to load it, what it holds, how it was made."""

from pathlib import Path
from typing import Any

from lorada.runs.recipe import Recipe
from lorada.support.files import write_whole
from lorada.support.version import __version__
from lorada.tuners.base.config import STACK

CARD = """\
---
library_name: peft
base_model: {model}
tags:
- lorada
- {method}
---

# {method} adapter for {model}

Trained with [lorada](https://pypi.org/project/lorada/) {version}. PEFT knows its parts once
`lorada` has been imported:

```python
import lorada  # registers the adapter types; without it PEFT ends in KeyError: '{peft_type}'
from peft import {auto}

model = {auto}.from_pretrained("path/to/this/folder")
```

A program that you cannot change (`lm_eval`, `trl`, `accelerate launch` …) loads it when it is
started with `lorada run` before its name.

| part | settings |
|---|---|
{parts}

Task `{task}`, rows `{data}`, seed {seed}. Limits: a map cannot be merged into the weights
(`model.merge_weights()` merges the other parts); runtimes that do not import `lorada` cannot load
this adapter.
"""

EXPORTED = """\
---
library_name: transformers
base_model: {model}
tags:
- lorada
- {method}
---

# {model} after {method}

Written by `lorada export` {version}: {merged}{left}.

```python
{imported}from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```
"""

# What the card of a folder says that holds an adapter too.
LEFT = """
The first line matters: `from_pretrained` places the adapter too, and without lorada it ends in
`KeyError: '{peft_type}'`. A program that you cannot change (`transformers serve`, `lm_eval` …)
loads the folder when it is started with `lorada run` before its name. Where peft is not installed,
transformers reads the base alone and says nothing, and so may runtimes that know no peft.

The folder may be moved. On the hub, transformers looks for the base where `adapter_config.json`
says: before you push, write the id of this repository into `base_model_name_or_path`.

The base without the adapter, as a second adapter or `PeftModel.from_pretrained` needs it:

```python
base = {auto}.from_pretrained("path/to/this/folder", adapter_kwargs={{"subfolder": "none"}})
```
"""

SHOWN = (
    "rank", "length", "heads", "inverse_scale", "align", "ablation", "r", "lora_alpha", "use_dora",
    "scale", "placement", "target_modules",
)  # fmt: skip


# The names of heads in transformers' and PEFT's auto classes, by PEFT's names of tasks.
HEADS = {
    "CAUSAL_LM": "CausalLM",
    "SEQ_2_SEQ_LM": "Seq2SeqLM",
    "SEQ_CLS": "SequenceClassification",
}


def write_card(folder: Path, recipe: Recipe, config: Any) -> None:
    """Write README.md into an adapter folder."""
    lines = []
    for part in config.parts:
        shown = {name: getattr(part, name, None) for name in SHOWN}
        text = ", ".join(
            f"{name}={sorted(value) if isinstance(value, set) else value}"
            for name, value in shown.items()
            if value is not None and value is not False
        )
        lines.append(f"| {getattr(part.peft_type, 'value', part.peft_type)} | {text} |")
    card = CARD.format(
        model=recipe.model,
        method=recipe.method,
        version=__version__,
        auto=f"AutoPeftModelFor{HEADS[config.task_type]}",
        peft_type=getattr(config.peft_type, "value", config.peft_type),
        parts="\n".join(lines),
        task=recipe.task,
        data=Path(recipe.data or recipe.train_on or "own").name,
        seed=recipe.training.get("seed", 42),
    )
    write_whole(folder / "README.md", card)


def write_export_card(
    folder: Path, recipe: Recipe, merged: list[str], left: list[str], task_type: str
) -> None:
    """Write README.md into the folder of an exported model.

    Args:
        folder: the exported model.
        recipe: of the run it comes from.
        merged: kinds of parts that its weights hold.
        left: kinds of parts that its adapter holds.
        task_type: what PEFT calls the model's task, ``CAUSAL_LM`` for one.
    """
    if merged:
        text = f"the base with {' and '.join(merged)} merged into its weights"
    elif left:
        text = "the base as it was, since nothing of the method can be merged"
    else:
        text = "the model as it was trained"
    auto, name = f"AutoModelFor{HEADS[task_type]}", STACK
    card = EXPORTED.format(
        model=recipe.model,
        method=recipe.method,
        version=__version__,
        merged=text,
        left=f", and an adapter of {' and '.join(left)} beside it" if left else "",
        imported=f"import lorada  # else: KeyError: '{name}'\n" if left else "",
        auto=auto,
    )
    if left:
        card += LEFT.format(peft_type=name, auto=auto)
    write_whole(folder / "README.md", card)
