"""The model card of a saved adapter: how to load it, what it holds, how it was made."""

from pathlib import Path
from typing import Any

from lorada.files import write_whole
from lorada.run.recipe import Recipe
from lorada.version import __version__

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

SHOWN = (
    "rank", "length", "heads", "inverse_scale", "align", "ablation", "r", "lora_alpha", "use_dora",
    "scale", "placement", "target_modules",
)  # fmt: skip


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
        auto="AutoPeftModelForSequenceClassification"
        if config.task_type == "SEQ_CLS"
        else "AutoPeftModelForCausalLM",
        peft_type=getattr(config.peft_type, "value", config.peft_type),
        parts="\n".join(lines),
        task=recipe.task,
        data=Path(recipe.data or "").name,
        seed=recipe.training.get("seed", 42),
    )
    write_whole(folder / "README.md", card)
