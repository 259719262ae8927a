"""A tiny model and rows to compare methods on, and comparisons of them."""

from folders import ROWS, llama_folder, rows_file

from lorada.compare.spec import Comparison


def model_and_rows(place):
    """Write a model, ``train.jsonl`` and ``test.jsonl`` into a folder."""
    llama_folder(place / "llama")
    rows_file(place / "train.jsonl", ROWS[:27])
    rows_file(place / "test.jsonl", ROWS[28:])
    return place


def comparison(place, data="train.jsonl", **changes):
    """A comparison on what ``model_and_rows`` wrote."""
    shared = {"model": str(place / "llama"), "data": str(place / data), **changes.pop("recipe", {})}
    return Comparison(recipe=shared, held_out=str(place / "test.jsonl"), **changes)
