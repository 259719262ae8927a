"""Statistics of a finished run's maps for the paper's figures: for a sentence, and by layer."""

from typing import Any

import torch

from lorada.data.task_rows import Rows, rows_to_score, scored_rows
from lorada.data.tokenize import prompt_of
from lorada.explore.explanation import explain
from lorada.explore.explore import tokens_to_show
from lorada.inference.load import Run
from lorada.methods.task_head import PEFT_NAMES
from lorada.runs.recipe import JSONL
from lorada.runs.result import read_result
from lorada.support.progress import progress_bar
from lorada.support.row_sources import Form, Row


def sentence_maps(
    run: Run, text: str, layer: int | None = None, head: int | None = None
) -> dict[str, Any]:
    """The attention maps of one sentence, as in Figure 1, and the statistics of every layer.

    Args:
        run: a run with a map.
        text: the sentence.
        layer: index among the layers with a map; None for the last.
        head: index of the head; None for the head with the largest norm of its map.

    Returns:
        ``tokens``, ``layer`` (its name), ``head``, ``maps`` (title → values, negative ratio) and
        ``layers`` (``effect_size``, ``negative_ratio`` and ``map_negative_ratio`` of each).

    Raises:
        ValueError: for a text that is empty or too long, a run without a map, or an index out of
            range.
    """
    ids = tokens_to_show(run, text)
    found = _explained(run, {"input_ids": torch.tensor([ids], device=run.device)})
    shown = found[_index(layer, len(found), "layer")]
    strongest = int(shown.map[0].norm(dim=(-1, -2)).argmax())
    head = _index(strongest if head is None else head, shown.map.shape[1], "head")
    return {
        "text": text,
        "layer": shown.layer.removeprefix(PEFT_NAMES),
        "head": head,
        "tokens": [run.tokenizer.decode([i]).strip() or "␣" for i in ids],
        "maps": {
            "softmax (Attn)": (shown.softmax[0, head].tolist(), None),
            "LMAM (Attn_s)": (shown.map[0, head].tolist(), float(shown.map_negative[head])),
            "fused": (shown.fused[0, head].tolist(), float(shown.negative[head])),
        },
        "layers": [_numbers(one) for one in found],
    }


def _numbers(layer: Any) -> dict[str, Any]:
    return {
        "layer": layer.layer.removeprefix(PEFT_NAMES),
        "effect_size": layer.effect_size,
        "negative_ratio": float(layer.negative.mean()),
        "map_negative_ratio": float(layer.map_negative.mean()),
    }


def _index(wanted: int | None, count: int, what: str) -> int:
    index = -1 if wanted is None else wanted
    if not -count <= index < count:
        raise ValueError(f"--{what} {index} is not in 0–{count - 1}")
    return index % count


def _explained(run: Run, batch: dict[str, Any]) -> list[Any]:
    """The layers with a map, as they read a batch of one row."""
    if run.kind == "encoder_decoder":  # the decoder reads the text as well
        shifted = run.model.prepare_decoder_input_ids_from_labels(batch["input_ids"])
        batch["decoder_input_ids"] = shifted
    found = [one for one in explain(run.model, batch) if one.map is not None]
    if not found:
        raise ValueError("this model has no active map: load or enable an adapter with LmamConfig")
    return found


def ratios_by_layer(
    run: Run, count: int, data: str | None = None, data_dir: str | None = None
) -> dict[str, Any]:
    """Negative ratio and effect size of every layer, as means over some test rows.

    Args:
        run: a run with a map.
        count: how many rows, from the first on.
        data: a file of rows; None for the test rows of the run's task, or its ``eval_data``.
        data_dir: local folder of the benchmarks' rows.

    Returns:
        ``rows`` (how many), ``task`` (the run's first), and ``layers``: the statistics of
        ``sentence_maps`` for each layer, as means over rows, and the ``map`` of the first row and
        head with its negative ratio ``shown_ratio``.
    """
    scored = _rows(run, data, data_dir)
    rows = scored.rows[:count]
    layers: list[dict[str, Any]] = []
    each = []  # by row, then by layer
    most = {"truncation": True, "max_length": run.recipe.max_length}
    for row in progress_bar(rows, "Explaining"):
        batch = run.tokenizer(*_texts(run, row, scored.form), return_tensors="pt", **most)
        found = _explained(run, dict(batch.to(run.device)))
        each.append([_numbers(one) for one in found])
        layers = layers or [
            {"map": one.map[0, 0].tolist(), "shown_ratio": float(one.map_negative[0])}
            for one in found
        ]
    for layer, numbers in zip(layers, zip(*each, strict=True), strict=True):
        layer["layer"] = numbers[0]["layer"]
        for name in ("effect_size", "negative_ratio", "map_negative_ratio"):
            layer[name] = float(torch.tensor([one[name] for one in numbers]).mean())
    return {"rows": len(rows), "task": run.recipe.tasks[0], "layers": layers}


def _rows(run: Run, data: str | None, data_dir: str | None) -> Rows:
    if data is not None or run.recipe.task == JSONL:
        return rows_to_score(run.recipe, read_result(run.folder), data)
    recipe = run.recipe.model_copy(update={"data_dir": data_dir or run.recipe.data_dir})
    return next(iter(scored_rows(recipe, run.form, run.labels, run.kind).values()))


def _texts(run: Run, row: Row, form: Form) -> list[str]:
    if "text" in row:
        return [row[name] for name in ("text", "text_pair") if row.get(name) is not None]
    return [prompt_of(row, form, run.tokenizer)]
