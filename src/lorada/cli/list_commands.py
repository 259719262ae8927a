"""The commands ``methods``, ``tasks`` and ``params``."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from lorada.cli import options as opt
from lorada.cli.shared import app, console, importing, print_json, say, suggest

# What the kinds of model are called that a method has settings for; others go by their own name.
KINDS = {
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
    from lorada.methods.lookup import describe
    from lorada.methods.table import METHODS

    names = [name] if name else list(METHODS)
    if peft:
        from lorada.methods.lookup import peft_names

        names = [each for each in peft_names() if each not in METHODS]
    rows = {each: describe(each) for each in names}
    if as_json:
        print_json(rows)
    elif peft:
        console.print(", ".join(names))
        suggest("methods", "ia3")
    elif name is not None:
        say(_method_page(name, rows[name]))
        suggest("params", "--method", name, "--model", "MODEL")
    else:
        width = max(map(len, rows))
        for each, row in rows.items():
            line = f"{each:{width}}  {row['summary']}"
            console.print(line, no_wrap=True, overflow="ellipsis")
        console.print(
            "Each is for any decoder, encoder or encoder-decoder; any without a map also as "
            "NAME+lmam; different parts also as a sum, such as lora+quanta; PEFT's tuners too, "
            "such as ia3, vera and oft: lorada methods --peft"
        )
        suggest("methods", "lorada_la")


def _method_page(name: str, row: Mapping[str, Any]) -> str:
    """All facts of one method as YAML, with its settings for each kind of model."""
    import yaml

    named = {
        key: {KINDS.get(kind, kind): value for kind, value in row[key].items()}
        for key in ("settings_from", "not_as_printed", "settings")
    }
    facts = {key: one for key, one in {**row, **named}.items() if one and key != "models"}
    # Through JSON, since YAML would print settings that several kinds of model share only once.
    copied = json.loads(json.dumps({"method": name, **facts}))
    page: str = yaml.safe_dump(
        copied, allow_unicode=True, sort_keys=False, default_flow_style=None, width=10_000
    )
    return page.rstrip()


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
    asked = read_recipe(None, pairs, {"method": method, "model": model, "output": "-"})
    with importing(quiet=as_json):
        from lorada.training.parameter_counts import parameters_of

        recipe = asked.complete()
    if recipe.training:
        raise ValueError(f"{', '.join(recipe.training)} changes no parameter count: leave it out")
    counts = parameters_of(recipe)
    if as_json:
        print_json(counts)
        return
    table = Table("trained and saved", "base model", "% of the base", "% with the adapter")
    shares = (f"{counts[name]:.4f}%" for name in ("percent", "percent_of_all"))
    table.add_row(f"{counts['trainable']:,}", f"{counts['total']:,}", *shares)
    console.print(table)
    console.print(f"settings: {counts['settings_from']}")
    named = "MODEL" if model in MODELS.keys() - PACKAGED else model  # some have no weights
    where = ("--model", named, "--data", "FILE", "--output", "runs/mine")
    suggest("train", "--method", method, *where, *pairs)
