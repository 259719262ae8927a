"""``lorada explore``: what the adapter of a finished run does to some sentences.

On a page; or in numbers, for the paper's figures.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorada.attention.call import CallShape
from lorada.attention.with_parts import CHILD
from lorada.data.rows.benchmark_rows import scored_rows
from lorada.data.rows.rows import Rows
from lorada.data.rows.training_rows import rows_to_score
from lorada.data.tokenize import context_of, prompt_of, without_end
from lorada.explore.explanation import Explanation, explain, page_entry
from lorada.inference.generate import chat_prompt
from lorada.inference.load import Run
from lorada.methods.head_modules import PEFT_NAMES
from lorada.runs.recipe import JSONL
from lorada.runs.result import read_result
from lorada.support.progress import progress_bar
from lorada.support.row_sources import HEADED, Form, Row
from lorada.training.models.loading import language_settings

MAX_TOKENS = 512  # of a sentence, unless the run has learned from longer rows
# What the paper's figures show of each layer, as means over heads.
STATISTICS = ("relative_norm", "negative_ratio", "map_negative_ratio")
Sentence = str | tuple[str, str]  # a text, or for a run that learned pairs the two of one


def pair_sentences(texts: Sequence[str], pairs: Sequence[str] | None) -> list[Sentence]:
    """Texts, each with its pair where the run has learned pairs.

    Raises:
        ValueError: if there are not as many pairs as texts.
    """
    if not pairs:
        return list(texts)
    if len(texts) != len(pairs):
        raise ValueError(f"--text is given {len(texts)} times and --text-pair {len(pairs)}")
    return list(zip(texts, pairs, strict=True))


def compute_page_data(run: Run, sentences: Sequence[Sentence]) -> dict[str, Any]:
    """The data of the page: a run on sentences, as ``explorer_page.py`` describes it."""

    def word_of(number: int) -> str:
        """The name of a class, or the text of a token."""
        if run.labels:
            return run.labels[number]
        return str(run.tokenizer.decode([number]))

    # All are tokenized first: a sentence that is refused stops before the model has run.
    tokenized = []
    for sentence in sentences:
        ids = _tokenize(run, sentence)["input_ids"]
        tokens = [run.tokenizer.decode([token]) for token in ids]
        text = sentence if isinstance(sentence, str) else " / ".join(sentence)
        tokenized.append({"tokens": tokens, "text": text})

    entries = []
    for sentence in progress_bar(sentences, f"Exploring {run.folder.name}"):
        explanation = explain_text(run, sentence)
        entries.append(page_entry(explanation, word_of))
    return {
        "sentences": tokenized,
        "run": {
            "name": run.folder.resolve().name,
            "method": run.recipe.method,
            "parts": explanation.parts,  # the same for every sentence, as is the head
            "head": explanation.head,
            "shown": entries,
        },
    }


def _tokenize(run: Run, sentence: Sentence) -> dict[str, list[int]]:
    """The model's inputs for a sentence or pair: ``input_ids``, and of a pair ``token_type_ids``.

    A run that learned chats reads a sentence as a user's turn, through the chat template. A
    sentence that is continued has no end token.

    ``token_type_ids`` say of each token which of the two texts it is of, as BERT reads pairs.

    Raises:
        ValueError: for a text of another kind than the run has learned, one without tokens, and one
            that is longer than the context.
    """
    _refuse_unlike(run, sentence)
    first, second = (sentence, None) if isinstance(sentence, str) else sentence
    is_chat = run.form == "messages"
    if is_chat:
        first = chat_prompt(run, [{"role": "user", "content": first}])
    # The template of a chat writes the special tokens itself.
    encoding = run.tokenizer(first, second, add_special_tokens=not is_chat, verbose=False)
    ids: list[int] = encoding["input_ids"]
    if run.kind == "decoder" and run.form not in HEADED and not is_chat:
        # Behind an end token the model would begin another text.
        ids = without_end(ids, run.tokenizer)
    if not ids:
        raise ValueError(f"{sentence!r} has no token that this model knows")
    _refuse_longer(run, len(ids))
    if second is None or "token_type_ids" not in encoding:
        return {"input_ids": ids}
    return {"input_ids": ids, "token_type_ids": encoding["token_type_ids"][: len(ids)]}


def _refuse_unlike(run: Run, sentence: Sentence) -> None:
    """Refuse an empty text, half of a pair, and a pair for a run that learned single texts."""
    texts = (sentence,) if isinstance(sentence, str) else sentence
    if not all(text.strip() for text in texts):
        raise ValueError("the text is empty: there is nothing to show")
    if run.pairs and isinstance(sentence, str):
        raise ValueError(
            f"{run.folder} has learned pairs of texts, and a sentence is half of one: add the "
            "other with --text-pair"
        )
    if not run.pairs and not isinstance(sentence, str):
        raise ValueError(f"{run.folder} has learned single texts, not pairs: leave --text-pair out")


def _refuse_longer(run: Run, tokens: int) -> None:
    """Refuse a sentence with more tokens than a page can show or the model can read."""
    limit = max(MAX_TOKENS, run.recipe.max_length)
    context = context_of(run.model.config)
    if context:
        limit = min(limit, context)
    if tokens > limit:
        raise ValueError(
            f"the sentence has {tokens:,} tokens and at most {limit:,} can be shown: shorten it"
        )


def explain_text(run: Run, sentence: Sentence) -> Explanation:
    """What the active adapter of a run's model does to a text, or to a pair of them."""
    batch = _make_batch(run, sentence)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    # Only the encoder reads the text; a model with a head makes the decoder's text of it by itself.
    if run.kind == "encoder_decoder" and run.form not in HEADED:
        usual_start = run.model.config.decoder_start_token_id
        settings = language_settings(run.tokenizer)
        start = settings.get("decoder_start_token_id", usual_start)
        batch["decoder_input_ids"] = batch["input_ids"].new_full((1, 1), start)
    return explain(run.model, batch)


def _make_batch(run: Run, sentence: Sentence) -> dict[str, Tensor]:
    """A batch of one sentence or pair."""
    batch = {}
    for name, numbers in _tokenize(run, sentence).items():
        batch[name] = torch.tensor([numbers], device=run.device)
    return batch


def sentence_maps(run: Run, sentence: Sentence, head: int | None = None) -> dict[str, Any]:
    """The attention maps of one sentence, as in Figure 1, and the statistics of every layer.

    ``maps`` (title → values, negative ratio) are of the last ``layer`` with a map, and of
    ``head``, or for None of the one whose map has the largest norm; ``layers`` have
    ``relative_norm``, ``negative_ratio`` and ``map_negative_ratio``.

    A ``head`` that the layer does not have is refused.
    """
    batch = _make_batch(run, sentence)
    ids = batch["input_ids"][0].tolist()
    layers = _explain_maps(run, dict(batch))
    drawn = layers[-1]
    heads = drawn.map.shape[1]
    if head is None:
        head = int(drawn.map[0].norm(dim=(-1, -2)).argmax())
    elif head >= heads:
        raise ValueError(f"head={head}: the layer has the heads 0 to {heads - 1}")
    return {
        "layer": drawn.layer.removeprefix(PEFT_NAMES),
        "head": head,
        # A token that is only a space would have no label on the axes.
        "tokens": [run.tokenizer.decode([token]).strip() or "␣" for token in ids],
        "maps": {
            "softmax (Attn)": (drawn.softmax[0, head].tolist(), None),
            "LMAM (Attn_s)": (drawn.map[0, head].tolist(), float(drawn.map_negative[head])),
            "fused": (drawn.fused[0, head].tolist(), float(drawn.negative[head])),
        },
        "layers": [_layer_statistics(layer) for layer in layers],
    }


def _layer_statistics(layer: Any) -> dict[str, Any]:
    """The name and the ``STATISTICS`` of a layer with a map, on one row."""
    return {
        "layer": layer.layer.removeprefix(PEFT_NAMES),
        "relative_norm": layer.relative_norm,
        "negative_ratio": float(layer.negative.mean()),
        "map_negative_ratio": float(layer.map_negative.mean()),
    }


def _explain_maps(run: Run, batch: dict[str, Any]) -> list[Any]:
    """The layers with a map (``ExplainedLayer``), as they read a batch of one row.

    Raises:
        ValueError: if no map is active in the model.
    """
    # The decoder reads the text as well.
    if run.kind == "encoder_decoder" and run.form not in HEADED:
        shifted = run.model.prepare_decoder_input_ids_from_labels(batch["input_ids"])
        batch["decoder_input_ids"] = shifted
    layers = [layer for layer in explain(run.model, batch) if layer.map is not None]
    if not layers:
        raise ValueError("this model has no active map: load or enable an adapter with LmamConfig")
    return layers


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
    test_rows = _load_test_rows(run, data, data_dir)
    rows = test_rows.rows[:count]
    panels: list[dict[str, Any]] = []
    by_row: list[list[dict[str, Any]]] = []  # for each row the statistics of each layer
    for row in progress_bar(rows, "Explaining"):
        texts = _input_texts(run, row, test_rows.form)
        batch = run.tokenizer(
            *texts, return_tensors="pt", truncation=True, max_length=run.recipe.max_length
        )
        layers = _explain_maps(run, dict(batch.to(run.device)))
        by_row.append([_layer_statistics(layer) for layer in layers])
        if not panels:  # the maps that are drawn are those of the first row
            panels = [_first_head(run, layer, whole=whole) for layer in layers]

    for panel, of_layer in zip(panels, zip(*by_row, strict=True), strict=True):
        panel["layer"] = of_layer[0]["layer"]
        for name in STATISTICS:
            values = torch.tensor([statistics[name] for statistics in of_layer])
            panel[name] = float(values.mean())
    return {"rows": len(rows), "task": run.recipe.tasks[0], "layers": panels, "whole": whole}


def _first_head(run: Run, layer: Any, *, whole: bool) -> dict[str, Any]:
    """The map of a layer's first head on the row that was explained, or the whole of it."""
    if not whole:
        return {"map": layer.map[0, 0].tolist(), "shown_ratio": float(layer.map_negative[0])}
    attention = run.model.get_submodule(layer.layer)
    (learned_map,) = attention.get_submodule(CHILD).maps()
    # Where no query attends to a later key, no query sees one through the map either.
    causal = not bool(layer.softmax.triu(1).any())
    length = learned_map.length
    shape = CallShape(length, length, layer.softmax.shape[1], causal)
    with torch.no_grad():
        map_ = learned_map.masked(learned_map.dense(), shape, None)[0]
    visible = torch.ones_like(map_, dtype=torch.bool)
    if causal:
        visible = visible.tril()
    negative = (map_[visible] < 0).float().mean()
    return {"map": (map_ * visible).tolist(), "shown_ratio": float(negative)}


def _load_test_rows(run: Run, data: str | None, data_dir: str | None) -> Rows:
    """The rows that the figures are of: a file's, or those that the run was scored on."""
    if data is not None or run.recipe.task == JSONL:
        return rows_to_score(run.recipe, read_result(run.folder), data)
    recipe = run.recipe.model_copy(update={"data_dir": data_dir or run.recipe.data_dir})
    by_name = scored_rows(recipe, run.form, run.labels, run.kind)
    return next(iter(by_name.values()))


def _input_texts(run: Run, row: Row, form: Form) -> list[str]:
    """What a model reads of a row: its text, its two texts, or its prompt."""
    if "text" not in row:
        return [prompt_of(row, form, run.tokenizer)]
    texts = [row["text"]]
    if row.get("text_pair") is not None:
        texts.append(row["text_pair"])
    return texts
