"""Writes the model card (README.md) of an adapter or of an exported model."""

from pathlib import Path
from typing import Any

from lorada.runs.folder.card_metadata import CARD_FILE, front_matter, licence_note
from lorada.runs.recipe import Recipe
from lorada.support.files import write_atomic
from lorada.support.version import __version__
from lorada.tuners.base.config import LAUNCH
from lorada.tuners.lmam import LmamConfig
from lorada.tuners.position_rows import reach

CARD = """\
---
{metadata}
---

# {title}

{made}

```python
{code}
```
{notes}
{licence}
"""

ADAPTER_NOTES = """
{launch}

| part | settings |
|---|---|
{parts}
{reach}
Task `{task}`, rows `{data}`, seed {seed}. Limits: a map cannot be merged into the weights
(`model.merge_weights()` merges the other parts); runtimes that do not import `lorada` cannot load
this adapter.
"""

# For an exported model with an adapter beside its weights.
BESIDE_NOTES = """
The first line matters: `from_pretrained` places the adapter too. Without lorada it ends in an error
about the model type `lorada`, or in `KeyError: 'LORADA'`, and so do `pipeline` and
`transformers serve`. vLLM and SGLang refuse the folder. Only a class of one model family, such as
`LlamaForCausalLM`, reads the base alone where peft is not installed.

{launch}

The folder may be moved. On the hub, transformers looks for the base where `adapter_config.json`
says: before you push, write the id of this repository into `base_model_name_or_path`.

The base without the adapter, as a second adapter or `PeftModel.from_pretrained` needs it
(transformers 5.23 or newer):

```python
base = {auto}.from_pretrained("path/to/this/folder", adapter_kwargs={{"subfolder": "none"}})
```
"""

# The settings of a part that a card shows.
SHOWN = (
    "rank", "length", "heads", "inverse_scale", "align", "ablation", "r", "lora_alpha", "use_dora",
    "scale", "placement", "pooling", "target_modules",
)  # fmt: skip

# The ends of the names of transformers' and PEFT's auto classes, by PEFT's task type.
HEADS = {
    "CAUSAL_LM": "CausalLM",
    "SEQ_2_SEQ_LM": "Seq2SeqLM",
    "SEQ_CLS": "SequenceClassification",
}


def write_card(
    folder: Path, recipe: Recipe, config: Any, result: dict[str, Any] | None = None
) -> None:
    """Write the model card of an adapter with a PEFT ``config`` into its folder.

    ``result`` is the ``result.json`` of its run; None before there is one.
    """
    peft_type = getattr(config.peft_type, "value", config.peft_type)
    auto = f"AutoPeftModelFor{HEADS[config.task_type]}"
    write_text(
        folder,
        recipe,
        front_matter(recipe, "peft", config.task_type),
        title=f"{recipe.method} adapter for {recipe.model}",
        made=f"Trained with lorada {__version__}. PEFT knows its parts once `lorada` has been\n"
        "imported:",
        code=f"import lorada  # registers the adapter types; without it: KeyError: '{peft_type}'\n"
        f"from peft import {auto}\n\n"
        f'model = {auto}.from_pretrained("path/to/this/folder"{_outputs(result)})',
        notes=ADAPTER_NOTES.format(
            launch=LAUNCH,
            parts="\n".join(map(_table_line, config.parts)),
            reach="".join(
                f"\n{reach(part)}\n" for part in config.parts if isinstance(part, LmamConfig)
            ),
            task=recipe.task,
            data=Path(recipe.data or recipe.train_on or "own").name,
            seed=recipe.training.get("seed", 42),
        ),
    )


def _outputs(result: dict[str, Any] | None) -> str:
    """The arguments for a head whose size the base may have otherwise; its weights are saved."""
    if result is None or not (result["labels"] or result["form"] == "score"):
        return ""
    size = len(result["labels"]) or 1
    return f", num_labels={size}, ignore_mismatched_sizes=True"


def _table_line(part: Any) -> str:
    shown = {name: getattr(part, name, None) for name in SHOWN}
    text = ", ".join(
        f"{name}={sorted(value) if isinstance(value, set) else value}"
        for name, value in shown.items()
        if value is not None and value is not False
    )
    return f"| {getattr(part.peft_type, 'value', part.peft_type)} | {text} |"


def write_model_card(
    folder: Path,
    recipe: Recipe,
    merged: list[str],
    left: list[str],
    task_type: str,
    command: str = "export",
) -> None:
    """Write the model card of an exported model, or of a fully trained one with a pooling.

    Args:
        folder: the folder of the model.
        recipe: the recipe of its run.
        merged: kinds of parts that are merged into its weights.
        left: kinds of parts that are in an adapter beside its weights.
        task_type: PEFT's name for the model's task, such as ``CAUSAL_LM``.
        command: the command that wrote it.
    """
    if merged:
        what = f"the base with {' and '.join(merged)} merged into its weights"
    elif left and left != ["POOLING"]:  # which is alone only with a fully trained model
        what = "the base as it was, since nothing of the method can be merged"
    else:
        what = "the model as it was trained"
    beside = f", and an adapter of {' and '.join(left)} beside it" if left else ""
    auto = f"AutoModelFor{HEADS[task_type]}"
    write_text(
        folder,
        recipe,
        front_matter(recipe, "transformers", task_type),
        title=f"{recipe.model} after {recipe.method}",
        made=f"Written by `lorada {command}` {__version__}: {what}{beside}.",
        code=("import lorada  # without it, loading ends in an error\n" if left else "")
        + f"from transformers import {auto}, AutoTokenizer\n\n"
        f'model = {auto}.from_pretrained("path/to/this/folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        notes=BESIDE_NOTES.format(launch=LAUNCH, auto=auto) if left else "",
    )


def write_text(folder: Path, recipe: Recipe, metadata: str, **texts: str) -> None:
    """Write a card from the ``texts`` of its parts and a sentence on the base's licence."""
    licence = licence_note(recipe.model)
    write_atomic(folder / CARD_FILE, CARD.format(metadata=metadata, licence=licence, **texts))
