"""What ``--dry-run`` of ``train``, ``table`` and ``compare`` prints: what would be run."""

from typing import Any

from rich.table import Table
from rich.text import Text

from lorada.cli.app import console, print_json
from lorada.support.duration import duration
from lorada.support.progress import progress_bar

LOADING = ("dtype", "quantization", "attn_implementation", "device_map")  # fields of a recipe


def show_training(recipe: Any, *, as_json: bool) -> None:
    """Print rows, parameters and memory of a training, and its first row; no weights are loaded."""
    from lorada.data.tokenize import fit_context, lost_and_first
    from lorada.training.arguments import device_bytes
    from lorada.training.inputs import prepare_training
    from lorada.training.models.loading import stretched
    from lorada.training.parameter_counts import parameters_of
    from lorada.training.train import checked_arguments
    from lorada.training.training_memory import refuse_impossible, step_bytes

    prepared = prepare_training(recipe)
    args, *_ = checked_arguments(prepared, quiet=True)
    counts = parameters_of(recipe)
    refuse_impossible(prepared.recipe, prepared.plan, counts)
    chosen = "full" if args.gradient_checkpointing else "off"
    scales = _scales(prepared.plan)
    loading = {name: getattr(prepared.recipe, name) for name in LOADING}
    sizes, reason = step_bytes(prepared, "off", "full")
    device = device_bytes(prepared.recipe)
    fitted = fit_context(prepared.recipe, stretched(prepared.config, recipe.rope_factor))
    lost, row = lost_and_first(prepared.rows, fitted, prepared.tokenizer, prepared.kind)
    if as_json:
        print_json({
            "method": recipe.method, "model": recipe.model, "output": recipe.output,
            "rows": len(prepared.rows.rows), "classes": prepared.rows.classes, **lost, **counts,
            "held_out": len(prepared.held_out.rows) if prepared.held_out else 0,
            "scales": scales, **loading, "activation_checkpointing": chosen, "step_bytes": sizes,
            "device_bytes": device, "first_row": row,
        })  # fmt: skip
        return
    table = Table("method", "model", "rows", "trained", "% of parameters", "output")
    table.add_row(
        recipe.method, recipe.model, f"{len(prepared.rows.rows):,}", f"{counts['trainable']:,}",
        f"{counts['percent']:.4f}%", recipe.output,
    )  # fmt: skip
    console.print(table)
    said = ", ".join(f"{count:,} {what}" for what, count in lost.items())
    console.print(f"rows at max_length={fitted.max_length}: {said}", highlight=False)
    need = _memory(sizes, reason, chosen, device)
    asked = recipe.activation_checkpointing
    takes = f"{asked} takes {chosen}" if asked == "auto" else asked
    console.print(f"activation_checkpointing={takes}: {need}", highlight=False, soft_wrap=True)
    said = " ".join(f"{name}={value}" for name, value in loading.items() if value is not None)
    console.print(f"the base is loaded with {said}", highlight=False, soft_wrap=True)
    for part, values in scales.items():
        console.print(f"{part} has {values}", highlight=False, soft_wrap=True)
    if row is not None:
        console.print(_shown_row(row), highlight=False, soft_wrap=True)


def _memory(sizes: dict[str, float] | None, reason: str, chosen: str, device: float | None) -> str:
    """What a step needs, in words, and whether it fits."""
    if sizes is None:
        return f"the memory of a step cannot be computed ({reason})"
    each = (f"{size / 2**30:,.2f} GiB with {name}" for name, size in sizes.items())
    need = f"a step needs {', '.join(each)}"
    if device is None:
        return need
    fits = "fits" if sizes[chosen] < device else "does not fit"
    return f"{need}; {chosen} {fits} in the {device / 2**30:.1f} GiB of this device"


def _scales(plan: Any) -> dict[str, str]:
    """Rank and alpha of each part of a method that is scaled by α/r, such as ``r=8, alpha=16``."""
    from lorada.methods.model_settings import rank_and_alpha

    found = {}
    for part in getattr(plan.config, "parts", []):
        if names := rank_and_alpha(vars(part)):
            shown = ", ".join(f"{name}={getattr(part, name)}" for name in names)
            found[part.peft_type.value.lower()] = shown
    return found


def _shown_row(row: dict[str, Any]) -> Text:
    """A row as the model reads it, with what counts in the loss between marks."""
    what = f"the {row['counted']:,} between ⟦ and ⟧ count in the loss"
    if row["learned"] is not None:
        what = f"the head learns {row['learned']!r}"
    which = "the first window" if row["row"] is None else f"row {row['row']}"
    head = f"{which} as the model reads it, {row['tokens']:,} tokens; {what}:\n"
    pieces = ((f"⟦{text}⟧", "bold") if counts else text for text, counts in row["pieces"])
    return Text.assemble(head, *pieces)


def show_table(found: list[Any], *, as_json: bool) -> None:
    """Print the runs of a table with parameters, steps and memory."""
    from lorada.paper.table_runs import done, needs

    plan = []
    for job in progress_bar(found, "Counting parameters"):
        plan.append({
            "row": job.row.key, "model": job.recipe.model, "tasks": job.tasks,
            "seed": job.seed, **needs(job), "share": job.row.share,
            "done": done(job) is not None,
        })  # fmt: skip
    if as_json:
        print_json(plan)
        return
    shown = Table("row", "tasks", "seed", "trained", "paper", "steps", "memory", "")
    for entry in plan:
        memory = entry["memory"]
        shown.add_row(
            entry["row"], " ".join(entry["tasks"]), str(entry["seed"]),
            f"{entry['percent']:.3f}%",
            "–" if entry["share"] is None else f"{entry['share']}%",
            "by rows" if entry["steps"] is None else f"{entry['steps']:,}",
            "–" if memory is None else f"{memory / 2**30:.1f} GiB", "done" * entry["done"],
        )  # fmt: skip
    console.print(shown)
    models = ", ".join(dict.fromkeys(entry["model"] for entry in plan))
    console.print(
        f"On {models}. Memory is that of a step, as if every row had max_length tokens. --json has "
        "every number.",
        highlight=False,
    )


def show_comparison(found: dict[str, Any], *, as_json: bool) -> None:
    """Print an estimate as a table or as JSON."""
    from lorada.compare.plan import as_given

    if as_json:
        print_json(found)
        return
    shown = Table()
    for name in ("method", "budget", "sizes", "parameters", "runs", "training", "memory"):
        shown.add_column(name, overflow="fold")
    for row in found["candidates"]:
        budgets = ", ".join(
            f"{budget} (above)" if above else budget for budget, above in row["budgets"].items()
        )
        if row["reason"] is not None:
            shown.add_row(row["method"], budgets, row["reason"], "", "", "", "")
            continue
        shown.add_row(
            row["method"], budgets, as_given(row["parts"]),
            f"{row['trainable']:,} ({row['percent']:.3f}%)", str(row["runs"]),
            duration(row["seconds"]), f"{row['peak_memory_bytes'] / 2**30:.1f} GiB",
        )  # fmt: skip
    console.print(shown)
    stages = Table("stage", "trainings", "probably", "at most", "probably")
    for name, stage in found["stages"].items():
        counts = (stage["trainings"], stage["probably"])
        stages.add_row(
            name,
            *(f"{count:.0f}" if name != "scoring" else "" for count in counts),
            *(duration(stage[key] / found["slots"]) for key in ("seconds", "probably_seconds")),
        )
    console.print(stages)
    console.print(
        f"{found['jobs']} trainings of {found['steps']} steps at most, {found['slots']} at once: "
        f"probably {duration(found['probably_seconds'])}, at most {duration(found['seconds'])}. "
        "Time and memory are those of the fastest of a few steps, at most with the longest rows; "
        "scoring is without the answers that a model writes. Methods are measured one after "
        "another: what else runs here meanwhile makes one look slower than it is.",
        highlight=False,
    )
