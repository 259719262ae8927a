"""The command ``quickstart``: which of three methods for the bundled rows, and what it answers."""

from pathlib import Path
from typing import Annotated

import typer

from lorada.cli.app import app, say
from lorada.cli.compare_commands import compare, is_there
from lorada.cli.predict_command import predict
from lorada.cli.queue_options import Overwrite, Workers
from lorada.support.files import as_typed

SETTINGS = [
    "pooling=mean", "max_length=64", "max_steps=80", "warmup_steps=8",
    "per_device_train_batch_size=16",
]  # fmt: skip
SENTENCE = "All dogs are pets. No pets are cats. Therefore, no dogs are cats."


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="folder of the comparison")] = Path(
        "runs/quickstart"
    ),
    workers: Workers = "2",
    overwrite: Overwrite = False,
) -> None:
    """Compare LoRA, IA3 and LoRA with a map on bundled rows, and use the one to take."""
    if is_there(output) and not overwrite:
        summary = compare(str(output), resume=True, workers=workers)
    else:
        summary = compare(
            overrides=SETTINGS, model="minilm-l6", data="builtin:syllogisms.csv", held_out="33%",
            methods="lora,ia3,lora+lmam", budget="0.2%", seeds="1,2,3", rates="1e-3,3e-3,1e-2",
            output=str(output),
            overwrite=overwrite, workers=workers,
        )  # fmt: skip
    if summary is None or "predict" not in summary.commands:
        return
    best = next(one for one in summary.lines if one.label == summary.best)
    run = output / best.first_run.folder
    typed = as_typed("lorada", "predict", run, "--text", SENTENCE)
    say(f"\n{typed}")
    predict(run, text=[SENTENCE])
