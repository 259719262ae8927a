"""``lorada explore``: what the adapters of finished runs do to some sentences, as page data."""

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftModel

from lorada.data.dataset import context_of
from lorada.data.tokenize import without_end
from lorada.explore.explained import Explanation, shown
from lorada.explore.explanation import explain
from lorada.explore.html_page import explorer_page
from lorada.inference.generate import chat_prompt
from lorada.inference.load import Run
from lorada.runs.checkpoints import checkpoints, damaged_file
from lorada.runs.one_base import adapter_names
from lorada.support.errors import refuse_empty
from lorada.support.progress import progress_bar
from lorada.support.row_sources import HEADED
from lorada.training.models.adapters import load_beside

MOST_TOKENS = 512  # of a sentence, unless the run has learned from longer rows
LONGEST = 10_000  # characters that are read of a sentence that is sent to the page's server
# Steps of a training that are shown besides its end, evenly among those that have a checkpoint.
MOST_STEPS = 8


def explored(runs: Sequence[Run], texts: Sequence[str], *, steps: bool = True) -> dict[str, Any]:
    """The data of the page.

    Args:
        runs: one or two runs, whose tokenizers cut the texts into the same tokens.
        texts: the sentences.
        steps: whether checkpoints of the trainings are shown too.

    Raises:
        ValueError: for a text that is empty or too long, a run without an adapter, or tokens that
            differ.
    """
    texts = texts or [""]
    read = [[_words(run, text) for text in texts] for run in runs]
    if any(other != read[0] for other in read[1:]):
        raise ValueError(
            f"{runs[0].folder} and {runs[1].folder} read other tokens: explore each alone"
        )
    names = adapter_names([run.folder for run in runs])
    return {
        "title": ", ".join(names),
        "sentences": [{"tokens": a, "text": b} for a, b in zip(read[0], texts, strict=True)],
        "runs": [
            _explored_run(run, name, texts, steps=steps)
            for run, name in zip(runs, names, strict=True)
        ],
    }


def tokens_to_show(run: Run, text: str) -> list[int]:
    """The token ids of a sentence; one that is continued has no end token.

    A run that learned chats reads it as a user's turn, through the chat template.

    Raises:
        ValueError: for a sentence that is empty, has no known token, or is too long, and for a run
            that learned pairs.
    """
    refuse_empty(text)
    if run.pairs:
        raise ValueError(
            f"{run.folder} has learned pairs of texts, and a sentence is half of one: explore "
            "another run, or ask this one with lorada predict --data FILE"
        )
    templated = run.form == "messages"
    read = chat_prompt(run, [{"role": "user", "content": text}]) if templated else text
    ids: list[int] = run.tokenizer(read, add_special_tokens=not templated, verbose=False).input_ids
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
    return ids


def explain_text(run: Run, text: str) -> Explanation:
    """What the active adapter of a run's model does to a text.

    Raises:
        ValueError: as ``explain`` and ``tokens_to_show`` do.
    """
    batch = {"input_ids": torch.tensor([tokens_to_show(run, text)], device=run.device)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if run.kind == "encoder_decoder":  # only the encoder reads the text
        start = run.model.config.decoder_start_token_id
        batch["decoder_input_ids"] = batch["input_ids"].new_full((1, 1), start)
    return explain(run.model, batch)


def _explored_run(run: Run, name: str, texts: Sequence[str], *, steps: bool) -> dict[str, Any]:
    model = run.model
    if not isinstance(model, PeftModel):
        raise ValueError(f"{run.folder} trained the base model itself: it has no adapter to show")
    states = {**(_checkpoints(run) if steps else {}), None: "default"}
    pictures, each = [], len(texts)
    for key, text in progress_bar(
        [(key, text) for key in states.values() for text in texts], f"Exploring {run.folder.name}"
    ):
        model.set_adapter(key, inference_mode=True)
        found = explain_text(run, text)
        pictures.append(shown(found, 0, partial(_word, run)))
    return {
        "name": name,
        "method": run.recipe.method,
        "parts": found.parts,
        "head": found.head,
        "steps": list(states),
        "shown": [pictures[start : start + each] for start in range(0, len(pictures), each)],
    }


def _checkpoints(run: Run) -> dict[int | None, str]:
    """Some steps of a run's training, and PEFT's name for the checkpoint of each.

    They are loaded beside its adapter; the last step is the run itself.
    """
    assert isinstance(run.model, PeftModel)
    whole = [
        (step, path) for step, path in reversed(checkpoints(run.folder)) if not damaged_file(path)
    ][:-1]
    states: dict[int | None, str] = {}
    count = min(len(whole), MOST_STEPS)
    for number in range(count):
        step, path = whole[number * (len(whole) - 1) // max(count - 1, 1)]
        key = f"step{step}"
        if key not in run.model.peft_config:
            load_beside(run.model, path, key, run.drawn)
        states[step] = key
    return states


def _words(run: Run, text: str) -> list[str]:
    return [run.tokenizer.decode([token]) for token in tokens_to_show(run, text)]


def _word(run: Run, number: int) -> str:
    """The name of a class, or the text of a token."""
    return run.labels[number] if run.labels else str(run.tokenizer.decode([number]))


def explorer_app(runs: Sequence[Run], texts: Sequence[str], *, steps: bool) -> Any:
    """``lorada explore --serve``: the page with a box for a sentence, as an ASGI application.

    It shows the sentence ``text`` of the address, or ``texts``.
    """
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, PlainTextResponse, Response
    from starlette.routing import Route

    one_at_a_time = threading.Lock()  # all share the models

    def show(request: Request) -> Response:
        text = request.query_params.get("text")
        asked = texts if text is None else [text[:LONGEST]]
        try:
            with one_at_a_time:
                data = explored(runs, asked, steps=steps)
        except ValueError as error:
            return PlainTextResponse(" ".join(str(error).split()), 400)
        return HTMLResponse(explorer_page(data, asked=asked[0]))

    return Starlette(routes=[Route("/", show)])
