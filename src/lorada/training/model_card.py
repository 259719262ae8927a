"""Writes the model card (README.md) of an adapter or of an exported model."""

import textwrap
from pathlib import Path

from huggingface_hub import ModelCardData
from transformers import PreTrainedConfig

from lorada.runs.recipe import Recipe
from lorada.support.files import write_atomic
from lorada.support.models import PACKAGED, published_name
from lorada.support.row_sources import file_names
from lorada.support.version import __version__
from lorada.tuners import LoradaConfig
from lorada.tuners.base.part_config import LAUNCH

CARD = """\
---
{metadata}
---

# {title}

{made}

```python
{code}
```
{notes}"""

WIDTH = 100  # of a card's text, in characters

# For a packaged base whose weights are not those of the hub's bit by bit.
UNPACKED = (
    "The base's weights came from the package `{package}`, which has them in 4 bits. They were "
    "unpacked, so they differ slightly from those of `{hub}`."
)

ADAPTER_NOTES = (
    "Parts: {parts}; their settings are in `adapter_config.json`. Trained on the task `{task}`, "
    "rows `{data}`, with the seed {seed}."
)

# For an exported model with an adapter beside its weights.
BESIDE_NOTES = """
The first line matters: `from_pretrained` places the adapter too, and without lorada it ends in an
error.{engine}

{launch}

The folder may be moved. On the hub, transformers looks for the base where `adapter_config.json`
says: before you push, write the id of this repository into `base_model_name_or_path`.
"""

# PEFT's task type → the end of the names of auto classes for it, and the hub's name of the task.
TASK_NAMES = {
    "CAUSAL_LM": ("CausalLM", "text-generation"),
    "SEQ_2_SEQ_LM": ("Seq2SeqLM", "text2text-generation"),
    "SEQ_CLS": ("SequenceClassification", "text-classification"),
}


def front_matter(recipe: Recipe, library: str, task_type: str) -> str:
    """The YAML at the top of a model card; ``library`` loads the folder, such as ``peft``."""
    data = ModelCardData(
        library_name=library,
        base_model=published_name(recipe.model),
        pipeline_tag=TASK_NAMES[task_type][1],
        tags=["lorada", recipe.method],
    )
    return str(data.to_yaml())


def _paragraph(text: str) -> str:
    """A text in lines that a reader of the file itself can read, after an empty one."""
    lines = textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return f"\n{lines}\n"


def _unpacked(model: str) -> str:
    """What a card says of a base whose weights were quantised in its package; else nothing."""
    package = PACKAGED.get(model)
    if package is None or package.gguf is None:
        return ""
    return _paragraph(UNPACKED.format(package=package.name, hub=package.hub))


def write_card(folder: Path, recipe: Recipe, config: LoradaConfig, base: PreTrainedConfig) -> None:
    """Write the model card of an adapter with a ``config`` on a model with that of the ``base``."""
    plain = config.plain is not None  # then PEFT needs no lorada
    knows = "PEFT loads it:" if plain else "PEFT knows its parts once `lorada` has been imported:"
    line = "import lorada  # registers the adapter types; without it: KeyError: 'LORADA'\n"
    auto = f"AutoPeftModelFor{TASK_NAMES[config.task_type][0]}"
    # The base may have a head of another size; the weights of the trained one are saved.
    arguments = ['"path/to/this/folder"']
    if config.task_type == "SEQ_CLS":
        outputs = [f"num_labels={base.num_labels}"]
        if base.problem_type != "regression":  # a number has no name
            outputs = [f"id2label={base.id2label}", f'problem_type="{base.problem_type}"']
        arguments += [*outputs, "ignore_mismatched_sizes=True"]
    call = arguments[0]
    if len(arguments) > 1:
        call = "".join(f"\n    {argument}," for argument in arguments) + "\n"
    write_text(
        folder,
        front_matter(recipe, "peft", config.task_type),
        title=f"{recipe.method} adapter for {published_name(recipe.model)}",
        made=_paragraph(f"Trained with lorada {__version__}. {knows}").strip(),
        code=("" if plain else line) + f"from peft import {auto}\n\n"
        f"model = {auto}.from_pretrained({call})",
        notes=("" if plain else f"\n{LAUNCH}\n")
        + _unpacked(recipe.model)
        + _paragraph(
            ADAPTER_NOTES.format(
                parts=", ".join(
                    getattr(one.peft_type, "value", one.peft_type) for one in config.parts
                ),
                task=recipe.task,
                data=file_names(recipe.data) if recipe.data else recipe.train_on or "own",
                seed=recipe.training.get("seed", 42),
            )
        ),
    )


def write_model_card(
    folder: Path, recipe: Recipe, merged: list[str], left: list[str], task_type: str
) -> None:
    """Write the model card of an exported model, or of a fully trained one with a pooling.

    Kinds of parts are ``merged`` into its weights or ``left`` in an adapter beside them.
    """
    if merged:
        what = f"the base with {' and '.join(merged)} merged into its weights"
    elif left and left != ["POOLING"]:  # which is alone only with a fully trained model
        what = "the base as it was, since nothing of the method can be merged"
    else:
        what = "the model as it was trained"
    beside = f", and an adapter of {' and '.join(left)} beside it" if left else ""
    auto = f"AutoModelFor{TASK_NAMES[task_type][0]}"
    # What lorada-vllm serves.
    served = task_type == "CAUSAL_LM" and {*left} <= {"LMAM", "BOTTLENECK"}
    engine = " vLLM needs the package lorada-vllm." if served else ""
    write_text(
        folder,
        front_matter(recipe, "transformers", task_type),
        title=f"{published_name(recipe.model)} after {recipe.method}",
        made=_paragraph(f"Written by lorada {__version__}: {what}{beside}.").strip(),
        code=("import lorada  # without it, loading ends in an error\n" if left else "")
        + f"from transformers import {auto}, AutoTokenizer\n\n"
        f'model = {auto}.from_pretrained("path/to/this/folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        notes=_unpacked(recipe.model)
        + (BESIDE_NOTES.format(launch=LAUNCH, engine=engine) if left else ""),
    )


def write_text(folder: Path, metadata: str, **texts: str) -> None:
    """Write a card from the ``texts`` of its parts."""
    write_atomic(folder / "README.md", CARD.format(metadata=metadata, **texts))
