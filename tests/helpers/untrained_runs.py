"""The untrained run of a comparison of a tiny model, and the rows that it is scored on."""

from folders import bart_folder, bert_folder, llama_folder, rows_file, t5_folder

from lorada.compare.baselines.untrained import untrained_run
from lorada.compare.run import read
from lorada.compare.spec import Comparison

MODELS = {"llama": llama_folder, "bert": bert_folder, "bart": bart_folder, "t5": t5_folder}


def compared(place, train, scored, *, model="llama", recipe=None, sizes=None, **options):
    """A comparison of these rows, with the model and the files in a folder; what it reads."""
    if not (place / model).is_dir():
        MODELS[model](place / model, **(sizes or {}))
    rows_file(place / "train.jsonl", train)
    rows_file(place / "test.jsonl", scored)
    settings = {"model": str(place / model), "data": str(place / "train.jsonl"), **(recipe or {})}
    options.setdefault("held_out", str(place / "test.jsonl"))
    comparison = Comparison(recipe=settings, methods=["lora"], **options)
    return comparison, *read(comparison)


def untrained(place, train, scored, **options):
    """The run of such a comparison, its training rows, and its held-out rows."""
    comparison, _, data = compared(place, train, scored, **options)
    run = untrained_run(comparison.shared_recipe, data.train, place)
    return run, data.train, [*data.held_out.values()]
