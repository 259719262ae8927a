"""The commands ``methods``, ``tasks`` and ``params``."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from lorada.cli import options as opt
from lorada.cli.shared import app, console, importing, print_json, say, suggest
from lorada.support.outside_packages import installed_methods

# A method's settings are by families of models. These stand for all models of a kind; others go by
# their own name.
KIND_NAMES = {
    "llama": "any decoder", "roberta": "any encoder", "deberta": "DeBERTa",
    "bart": "any encoder-decoder",
}  # fmt: skip


@app.command(rich_help_panel=opt.COMPARE)
def methods(
    name: Annotated[str | None, typer.Argument(help="one method, in full")] = None,
    peft: Annotated[bool, typer.Option("--peft", help="the names of PEFT's tuners")] = False,
    as_json: opt.Json = False,
) -> None:
    """List the methods, or show the formula, paper and settings of one."""
    from lorada.methods.lookup import allow_methods, describe
    from lorada.methods.table import METHODS

    if name is not None:
        allow_methods([name])
    names = [name] if name else list(METHODS)
    if peft:
        from lorada.methods.lookup import peft_names

        names = [tuner for tuner in peft_names() if tuner not in METHODS]
    facts_by_name = {method: describe(method) for method in names}
    if as_json:
        print_json(facts_by_name)
    elif peft:
        console.print(", ".join(names))
        suggest("methods", "ia3")
    elif name is not None:
        say(_method_page(name, facts_by_name[name]))
        suggest("params", "--method", name, "--model", "MODEL")
    else:
        width = max(map(len, facts_by_name))
        for method, facts in facts_by_name.items():
            line = f"{method:{width}}  {facts['summary']}"
            console.print(line, no_wrap=True, overflow="ellipsis")
        console.print(
            "Each is for any decoder, encoder or encoder-decoder; any without a map also as "
            "NAME+lmam; different parts also as a sum, such as lora+quanta; PEFT's tuners too, "
            "such as ia3, vera and oft: lorada methods --peft"
        )
        if installed_methods():
            console.print(f"Of other packages: {', '.join(sorted(installed_methods()))}")
        suggest("methods", "lorada_la")


def _method_page(name: str, facts: Mapping[str, Any]) -> str:
    """All facts of one method as YAML, with its settings for each kind of model."""
    import yaml

    page: dict[str, Any] = {"method": name}
    for key, value in facts.items():
        if key in ("settings_from", "not_as_printed", "settings"):
            value = {KIND_NAMES.get(family, family): setting for family, setting in value.items()}
        if value and key != "models":  # the settings are by the same models already
            page[key] = value
    # Through JSON, since YAML would print settings that several kinds of model share once, and
    # refer to them by anchors elsewhere.
    copied = json.loads(json.dumps(page))
    text: str = yaml.safe_dump(
        copied, allow_unicode=True, sort_keys=False, default_flow_style=None, width=10_000
    )
    return text.rstrip()


@app.command(rich_help_panel=opt.PAPER)
def tasks(as_json: opt.Json = False) -> None:
    """List the tasks."""
    from lorada.data.tasks import TASKS

    if as_json:
        print_json({
            name: {
                "summary": task.summary, "benchmark": task.benchmark,
                "protocols": list(task.protocols), "train_on": list(task.train),
            }
            for name, task in TASKS.items()
        })  # fmt: skip
        return
    table = Table("task", "benchmark", "what", "protocols")
    for name, task in TASKS.items():
        table.add_row(name, task.benchmark, task.summary, ", ".join(task.protocols))
    console.print(table)
    suggest("train", "--model", "smollm2-135m", "--data", "FILE", "--output", "runs/mine")


@app.command(rich_help_panel=opt.COMPARE)
def params(
    method: Annotated[str, opt.METHOD],
    model: Annotated[str, opt.MODEL],
    overrides: opt.Overrides = None,
    as_json: opt.Json = False,
) -> None:
    """Count a method's parameters on a model, without loading weights."""
    from lorada.support.models import MODELS, PACKAGED, check_name
    from lorada.training.load_recipe import read_recipe

    pairs = list(overrides or [])
    check_name(model, weights=False)  # first, since some methods' names need PEFT
    # A recipe needs an output, though nothing is written.
    unchecked = read_recipe(None, pairs, {"method": method, "model": model, "output": "-"})
    with importing(quiet=as_json):
        from lorada.training.parameter_counts import parameters_of

        recipe = unchecked.complete()
    if recipe.training:
        raise ValueError(f"{', '.join(recipe.training)} changes no parameter count: leave it out")
    counts = parameters_of(recipe)
    if as_json:
        print_json(counts)
        return
    table = Table("trained and saved", "base model", "% of the base", "% with the adapter")
    table.add_row(
        f"{counts['trainable']:,}",
        f"{counts['total']:,}",
        f"{counts['percent']:.4f}%",
        f"{counts['percent_of_all']:.4f}%",
    )
    console.print(table)
    console.print(f"settings: {counts['settings_from']}")
    # Some names have a config alone and no weights to train.
    trainable_model = "MODEL" if model in MODELS.keys() - PACKAGED else model
    options = ("--model", trainable_model, "--data", "FILE", "--output", "runs/mine")
    suggest("train", "--method", method, *options, *pairs)
