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

{summary}

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

# The first lines of code where the adapter types of lorada have to be known.
IMPORT_FOR_PEFT = "import lorada  # registers the adapter types; without it: KeyError: 'LORADA'"
IMPORT_FOR_TRANSFORMERS = "import lorada  # without it, loading ends in an error"

SERVED_BY_VLLM = {"LMAM", "BOTTLENECK"}  # parts that the package lorada-vllm knows

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


def _unpacking_note(model: str) -> str:
    """What a card says of a base whose weights were quantised in its package; else nothing."""
    package = PACKAGED.get(model)
    if package is None or package.gguf is None:
        return ""
    return _paragraph(UNPACKED.format(package=package.name, hub=package.hub))


def write_card(folder: Path, recipe: Recipe, config: LoradaConfig, base: PreTrainedConfig) -> None:
    """Write the model card of an adapter.

    Args:
        folder: of the adapter.
        recipe: of its run.
        config: of the adapter.
        base: the config of the model that it is for.
    """
    auto_class = f"AutoPeftModelFor{TASK_NAMES[config.task_type][0]}"
    arguments = _loading_arguments(config, base)
    code = f"from peft import {auto_class}\n\nmodel = {auto_class}.from_pretrained({arguments})"
    code = "".join(f"import {name}  # registers its tuner\n" for name in _packages(config)) + code
    if config.plain is not None:  # an adapter as PEFT saves it, which needs no lorada
        how_it_loads = "PEFT loads it:"
        notes = ""
    else:
        how_it_loads = "PEFT knows its parts once `lorada` has been imported:"
        notes = f"\n{LAUNCH}\n"
        code = f"{IMPORT_FOR_PEFT}\n{code}"
    notes += _unpacking_note(recipe.model) + _paragraph(_adapter_notes(recipe, config))
    write_text(
        folder,
        front_matter(recipe, "peft", config.task_type),
        title=f"{recipe.method} adapter for {published_name(recipe.model)}",
        summary=_paragraph(f"Trained with lorada {__version__}. {how_it_loads}").strip(),
        code=code,
        notes=notes,
    )


def _packages(config: LoradaConfig) -> list[str]:
    """The packages of other authors that register tuners of the parts."""
    packages = {type(part).__module__.partition(".")[0] for part in config.parts}
    return sorted(packages - {"peft", "lorada"})


def _loading_arguments(config: LoradaConfig, base: PreTrainedConfig) -> str:
    """The arguments of ``from_pretrained`` as a card prints them."""
    folder = '"path/to/this/folder"'
    if config.task_type != "SEQ_CLS":
        return folder
    if base.problem_type == "regression":  # a number has no name
        outputs = [f"num_labels={base.num_labels}"]
    else:
        outputs = [f"id2label={base.id2label}", f'problem_type="{base.problem_type}"']
    # The base may have a head of another size; the weights of the trained one are saved.
    arguments = [folder, *outputs, "ignore_mismatched_sizes=True"]
    return "".join(f"\n    {argument}," for argument in arguments) + "\n"


def _adapter_notes(recipe: Recipe, config: LoradaConfig) -> str:
    """What the adapter is made of, and what it was trained on."""
    # PEFT's own types are members of an enum, those of lorada are texts.
    types = [str(getattr(part.peft_type, "value", part.peft_type)) for part in config.parts]
    rows = file_names(recipe.data) if recipe.data else recipe.train_on or "own"
    return ADAPTER_NOTES.format(
        parts=", ".join(types), task=recipe.task, data=rows, seed=recipe.training.get("seed", 42)
    )


def write_model_card(
    folder: Path, recipe: Recipe, merged: list[str], unmerged: list[str], task_type: str
) -> None:
    """Write the model card of an exported model, or of a fully trained one with a pooling.

    Args:
        folder: where the model is.
        recipe: of its run.
        merged: PEFT types of the parts that are merged into its weights.
        unmerged: those that are in an adapter beside the weights.
        task_type: PEFT's task type.
    """
    content = _model_content(merged, unmerged)
    auto_class = f"AutoModelFor{TASK_NAMES[task_type][0]}"
    code = (
        f"from transformers import {auto_class}, AutoTokenizer\n\n"
        f'model = {auto_class}.from_pretrained("path/to/this/folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")'
    )
    notes = _unpacking_note(recipe.model)
    if unmerged:
        code = f"{IMPORT_FOR_TRANSFORMERS}\n{code}"
        is_served_by_vllm = task_type == "CAUSAL_LM" and {*unmerged} <= SERVED_BY_VLLM
        engine = " vLLM needs the package lorada-vllm." if is_served_by_vllm else ""
        notes += BESIDE_NOTES.format(launch=LAUNCH, engine=engine)
    write_text(
        folder,
        front_matter(recipe, "transformers", task_type),
        title=f"{published_name(recipe.model)} after {recipe.method}",
        summary=_paragraph(f"Written by lorada {__version__}: {content}.").strip(),
        code=code,
        notes=notes,
    )


def _model_content(merged: list[str], unmerged: list[str]) -> str:
    """What a model folder holds, by its merged and unmerged parts, in words."""
    if merged:
        weights = f"the base with {' and '.join(merged)} merged into its weights"
    elif unmerged and unmerged != ["POOLING"]:  # which is alone only with a fully trained model
        weights = "the base as it was, since nothing of the method can be merged"
    else:
        weights = "the model as it was trained"
    if not unmerged:
        return weights
    return f"{weights}, and an adapter of {' and '.join(unmerged)} beside it"


def write_text(folder: Path, metadata: str, **texts: str) -> None:
    """Write a card from the ``texts`` of its parts."""
    write_atomic(folder / "README.md", CARD.format(metadata=metadata, **texts))
