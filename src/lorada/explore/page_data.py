"""``lorada explore``: what the adapter of a finished run does to some sentences.

On a page; or in numbers, for the paper's figures.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorada.attention.call import CallShape
from lorada.attention.with_parts import CHILD
from lorada.data.task_rows import Rows, rows_to_score, scored_rows
from lorada.data.tokenize import context_of, prompt_of, without_end
from lorada.explore.explanation import Explanation, explain, shown
from lorada.inference.generate import chat_prompt
from lorada.inference.load import Run
from lorada.methods.head_modules import PEFT_NAMES
from lorada.runs.recipe import JSONL
from lorada.runs.result import read_result
from lorada.support.progress import progress_bar
from lorada.support.row_sources import HEADED, Form, Row
from lorada.training.models.loading import language_settings

MOST_TOKENS = 512  # of a sentence, unless the run has learned from longer rows
Sentence = str | tuple[str, str]  # a text, or for a run that learned pairs the two of one


def sentences_of(texts: Sequence[str], pairs: Sequence[str] | None) -> list[Sentence]:
    """Texts, each with its pair where pairs are given."""
    if not pairs:
        return list(texts)
    if len(texts) != len(pairs):
        raise ValueError(f"--text is given {len(texts)} times and --text-pair {len(pairs)}")
    return list(zip(texts, pairs, strict=True))


def explored(run: Run, texts: Sequence[Sentence]) -> dict[str, Any]:
    """The data of the page: a run on sentences."""

    def word_of(number: int) -> str:
        """The name of a class, or the text of a token."""
        return run.labels[number] if run.labels else str(run.tokenizer.decode([number]))

    words = [[run.tokenizer.decode([one]) for one in tokens_to_show(run, text)] for text in texts]
    pictures = []
    for text in progress_bar(texts, f"Exploring {run.folder.name}"):
        found = explain_text(run, text)
        pictures.append(shown(found, word_of))
    return {
        "sentences": [
            {"tokens": tokens, "text": text if isinstance(text, str) else " / ".join(text)}
            for tokens, text in zip(words, texts, strict=True)
        ],
        "run": {
            "name": run.folder.resolve().name,
            "method": run.recipe.method,
            "parts": found.parts,
            "head": found.head,
            "shown": pictures,
        },
    }


def tokens_to_show(run: Run, text: Sentence) -> list[int]:
    """The token ids of a sentence; one that is continued has no end token."""
    return _encoded(run, text)["input_ids"]


def _encoded(run: Run, text: Sentence) -> dict[str, list[int]]:
    """The token ids of a sentence or pair, and of a pair which text each token is of.

    A run that learned chats reads a sentence as a user's turn, through the chat template.
    """
    _refuse_unlike(run, text)
    first, second = (text, None) if isinstance(text, str) else text
    templated = run.form == "messages"
    read = chat_prompt(run, [{"role": "user", "content": first}]) if templated else first
    encoding = run.tokenizer(read, second, add_special_tokens=not templated, verbose=False)
    ids: list[int] = encoding["input_ids"]
    if run.kind == "decoder" and run.form not in HEADED and not templated:
        ids = without_end(ids, run.tokenizer)
    if not ids:
        raise ValueError(f"{text!r} has no token that this model knows")
    most = max(MOST_TOKENS, run.recipe.max_length)
    most = min(most, context_of(run.model.config) or most)
    if len(ids) > most:
        raise ValueError(
            f"the sentence has {len(ids):,} tokens and at most {most:,} can be shown: shorten it"
        )
    if second is None or "token_type_ids" not in encoding:
        return {"input_ids": ids}
    return {"input_ids": ids, "token_type_ids": encoding["token_type_ids"][: len(ids)]}


def _refuse_unlike(run: Run, text: Sentence) -> None:
    """Refuse an empty text, half of a pair, and a pair for a run that learned single texts."""
    if not all(part.strip() for part in ((text,) if isinstance(text, str) else text)):
        raise ValueError("the text is empty: there is nothing to show")
    if run.pairs and isinstance(text, str):
        raise ValueError(
            f"{run.folder} has learned pairs of texts, and a sentence is half of one: add the "
            "other with --text-pair"
        )
    if not run.pairs and not isinstance(text, str):
        raise ValueError(f"{run.folder} has learned single texts, not pairs: leave --text-pair out")


def explain_text(run: Run, text: Sentence) -> Explanation:
    """What the active adapter of a run's model does to a text, or to a pair of them."""
    batch = _batch_of(run, text)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    # Only the encoder reads the text; a model with a head makes the decoder's text of it by itself.
    if run.kind == "encoder_decoder" and run.form not in HEADED:
        usual = run.model.config.decoder_start_token_id
        start = language_settings(run.tokenizer).get("decoder_start_token_id", usual)
        batch["decoder_input_ids"] = batch["input_ids"].new_full((1, 1), start)
    return explain(run.model, batch)


def _batch_of(run: Run, text: Sentence) -> dict[str, Tensor]:
    """A batch of one sentence or pair."""
    encoded = _encoded(run, text)
    return {name: torch.tensor([ids], device=run.device) for name, ids in encoded.items()}


def sentence_maps(run: Run, text: Sentence, head: int | None = None) -> dict[str, Any]:
    """The attention maps of one sentence, as in Figure 1, and the statistics of every layer.

    ``maps`` (title → values, negative ratio) are of the last ``layer`` with a map, and of
    ``head``, or for None of the one whose map has the largest norm; ``layers`` have
    ``relative_norm``, ``negative_ratio`` and ``map_negative_ratio``.
    """
    batch = _batch_of(run, text)
    ids = batch["input_ids"][0].tolist()
    found = _explained(run, dict(batch))
    shown = found[-1]
    heads = shown.map.shape[1]
    if head is None:
        head = int(shown.map[0].norm(dim=(-1, -2)).argmax())
    elif head >= heads:
        raise ValueError(f"head={head}: the layer has the heads 0 to {heads - 1}")
    return {
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
        "relative_norm": layer.relative_norm,
        "negative_ratio": float(layer.negative.mean()),
        "map_negative_ratio": float(layer.map_negative.mean()),
    }


def _explained(run: Run, batch: dict[str, Any]) -> list[Any]:
    """The layers with a map, as they read a batch of one row."""
    # The decoder reads the text as well.
    if run.kind == "encoder_decoder" and run.form not in HEADED:
        shifted = run.model.prepare_decoder_input_ids_from_labels(batch["input_ids"])
        batch["decoder_input_ids"] = shifted
    found = [one for one in explain(run.model, batch) if one.map is not None]
    if not found:
        raise ValueError("this model has no active map: load or enable an adapter with LmamConfig")
    return found


def ratios_by_layer(
    run: Run,
    count: int,
    data: str | None = None,
    data_dir: str | None = None,
    *,
    whole: bool = False,
) -> dict[str, Any]:
    """The statistics of every layer, as means over the first ``count`` test rows.

    They are of a file of rows, ``data``, or of the run's task, or its ``eval_data``. With each is
    the ``map`` of the first head and its negative ratio, ``shown_ratio``: on the first row, or with
    ``whole`` all of it, however many tokens rows have. Returned besides are ``rows``, how many,
    ``task``, the run's first, and ``whole``.
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
        layers = layers or [_first_head(run, one, whole=whole) for one in found]
    for layer, numbers in zip(layers, zip(*each, strict=True), strict=True):
        layer["layer"] = numbers[0]["layer"]
        for name in ("relative_norm", "negative_ratio", "map_negative_ratio"):
            layer[name] = float(torch.tensor([one[name] for one in numbers]).mean())
    return {"rows": len(rows), "task": run.recipe.tasks[0], "layers": layers, "whole": whole}


def _first_head(run: Run, layer: Any, *, whole: bool) -> dict[str, Any]:
    """The map of a layer's first head on the row that was explained, or the whole of it."""
    if not whole:
        return {"map": layer.map[0, 0].tolist(), "shown_ratio": float(layer.map_negative[0])}
    (own,) = run.model.get_submodule(layer.layer).get_submodule(CHILD).maps()
    # Where no query attends to a later key, no query sees one through the map either.
    causal = not bool(layer.softmax.triu(1).any())
    shape = CallShape(own.length, own.length, layer.softmax.shape[1], causal)
    with torch.no_grad():
        map_ = own.masked(own.dense(), shape, None)[0]
    seen = torch.ones_like(map_, dtype=torch.bool)
    if causal:
        seen = seen.tril()
    return {"map": (map_ * seen).tolist(), "shown_ratio": float((map_[seen] < 0).float().mean())}


def _rows(run: Run, data: str | None, data_dir: str | None) -> Rows:
    if data is not None or run.recipe.task == JSONL:
        return rows_to_score(run.recipe, read_result(run.folder), data)
    recipe = run.recipe.model_copy(update={"data_dir": data_dir or run.recipe.data_dir})
    return next(iter(scored_rows(recipe, run.form, run.labels, run.kind).values()))


def _texts(run: Run, row: Row, form: Form) -> list[str]:
    if "text" in row:
        return [row[name] for name in ("text", "text_pair") if row.get(name) is not None]
    return [prompt_of(row, form, run.tokenizer)]
