"""Writes docs/catalogue.md and its pictures: every method of METHODS, and where it sits in a layer.

    python scripts/catalogue_page.py

Formula, paper and purpose stand in METHODS. Parameters are counted, what merges is asked of the
configs, and what trains is read from a placed model. The time of a step is that of
benchmarks/results/costs.json.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from method_groups import group_of
from peft import get_peft_model
from placement_picture import Kind, picture, placements
from transformers import AutoModelForCausalLM, LlamaConfig

from lorada.methods.build import build_method
from lorada.methods.head_modules import select_trainable
from lorada.methods.lookup import method_named
from lorada.methods.method import Method
from lorada.methods.table import METHODS
from lorada.training.load_recipe import read_recipe
from lorada.training.parameter_counts import parameters_of

ROOT = Path(__file__).parents[1]
PAGE, PICTURES = ROOT / "docs/catalogue.md", ROOT / "docs/catalogue"
COSTS = ROOT / "benchmarks/results/costs.json"
MODELS = {"llama-7b": "LLaMA-7B", "roberta-base": "RoBERTa-base"}
# A decoder that has biases, which BitFit needs; no weights are made.
SMALL = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, vocab_size=256, attention_bias=True, mlp_bias=True,
)  # fmt: skip

HEADER = """\
# Which methods are there?

Every method of `lorada methods`, by what it changes; [any tuner of the installed PEFT](methods.md)
and any sum is a method too. Which of them suits your rows is what [`lorada compare`](compare.md)
finds out. `make pages` writes this page from the table of methods.

- **LLaMA-7B, RoBERTa-base:** the parameters that train at the method's own size, in percent of the
  model. `lorada params` counts any other.
- **Step:** milliseconds of a training step of `smollm2-135m` with 8 × 64 tokens (AMD EPYC, 2
  threads, fp32; medians of 7 steps), at each method's own size: a larger one takes longer. [How it
  was measured](methods.md#what-a-step-costs), and beside what.
- **Merges:** whether it disappears into the weights of the base, so that it costs nothing when the
  model is used. *Itself*: the base's own weights train.
- **Plain PEFT:** whether what is saved loads without lorada.

"""
LEGEND = """\
The pictures show one layer of a decoder. Blue: what trains there, as a part that is added or as the
weights themselves; a blue frame: biases. What trains outside of the layers, such as embeddings, is
not shown.
"""


@dataclass(frozen=True)
class Entry:
    """What the page says of one method."""

    name: str
    method: Method
    percent: dict[str, float]  # model → share of its parameters that trains
    milliseconds: float | None  # of a step; None if it was not measured
    merges: str
    plain: str
    places: dict[str, Kind]  # where in a layer something trains


def entry(name: str, costs: dict[str, Any]) -> Entry:
    """Count, ask and place one method."""
    plan = build_method(name, SMALL)
    model: Any = AutoModelForCausalLM.from_config(SMALL)
    if plan.config is None:
        select_trainable(model, plan.trainable)
        merges, plain = "itself", "itself"
    else:
        merges = "yes" if plan.config.mergeable else "no"
        plain = "yes" if plan.config.plain is not None else "no"
        model = get_peft_model(model, plan.config)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    measured = costs.get(name)
    return Entry(
        name=name,
        method=method_named(name),
        percent=_percents(name),
        milliseconds=measured["ours_ms"] if measured else None,
        merges=merges,
        plain=plain,
        places=placements(trained),
    )


def _percents(name: str) -> dict[str, float]:
    """The share of each model's parameters that a method trains; without those it is not for."""
    percents = {}
    for model in MODELS:
        recipe = read_recipe(None, [], {"method": name, "model": model, "output": "-"}).complete()
        try:
            percents[model] = parameters_of(recipe)["percent"]
        except ValueError as refused:
            if "has none" not in str(refused):  # BitFit, as LLaMA has no biases
                raise
    return percents


def entries() -> list[Entry]:
    """All methods, group by group."""
    costs = json.loads(COSTS.read_text(encoding="utf-8"))["rows"]
    return [entry(name, costs) for name in METHODS]


def page(methods: list[Entry]) -> str:
    """The whole page."""
    lines = [HEADER + "\n".join(_table(methods)), "", LEGEND]
    groups: dict[str, list[Entry]] = {}
    for one in methods:
        groups.setdefault(group_of(one.method), []).append(one)
    for group, members in groups.items():
        lines += [f"## {group[0].upper()}{group[1:]}", ""]
        for one in members:
            lines += _section(one)
    return "\n".join(lines).rstrip() + "\n"


def _table(methods: list[Entry]) -> Iterator[str]:
    names = " | ".join(f"{name}, %" for name in MODELS.values())
    yield f"| method | {names} | step, ms | merges | plain PEFT | when to try it |"
    yield "|---|" + "--:|" * (len(MODELS) + 1) + "---|---|---|"
    for one in methods:
        percents = [_percent(one.percent.get(model)) for model in MODELS]
        step = f"{one.milliseconds:,.0f}" if one.milliseconds else "–"
        cells = [f"[`{one.name}`](#{one.name})", *percents, step, one.merges, one.plain]
        yield f"| {' | '.join(cells)} | {one.method.when} |"


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    return f"{share:.3f}" if share < 1 else f"{share:.1f}"


def _section(one: Entry) -> Iterator[str]:
    yield f"### `{one.name}` {{ #{one.name} }}"
    yield ""
    purpose = f"**When to try it:** {one.method.when}."
    yield f"{one.method.summary}. {purpose} [Paper]({one.method.paper})."
    yield ""
    yield f"`{one.method.formula}`"
    yield ""
    yield f"![{one.name} in a layer: {_in_words(one)}](catalogue/{one.name}.svg)"
    yield ""


def _in_words(one: Entry) -> str:
    return ", ".join(one.places)


def write() -> None:
    """Write the page and its pictures, and remove those of methods that are gone."""
    methods = entries()
    PICTURES.mkdir(exist_ok=True)
    for old in PICTURES.glob("*.svg"):
        old.unlink()
    for name, text in pictures(methods).items():
        (PICTURES / name).write_text(text, encoding="utf-8")
    PAGE.write_text(page(methods), encoding="utf-8")


def pictures(methods: list[Entry]) -> dict[str, str]:
    """The pictures by the names of their files."""
    return {
        f"{one.name}.svg": picture(one.places, f"{one.name}: {_in_words(one)}") for one in methods
    }


if __name__ == "__main__":
    write()
