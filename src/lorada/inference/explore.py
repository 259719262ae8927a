"""``lorada explore``: what the adapters of finished runs do to some sentences, as page data."""

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from peft import PeftModel

from lorada.inference.load import Run
from lorada.report.explorer.page import explorer_page
from lorada.runs.folder.checkpoints import checkpoints, damaged_file
from lorada.runs.folder.same_base import adapter_names
from lorada.runs.models.adapters import load_beside
from lorada.support.errors import refuse_empty
from lorada.support.progress import progress_bar
from lorada.tuners.explained import Explanation, shown
from lorada.tuners.explanation import explain
from lorada.tuners.lmam import map_configs
from lorada.tuners.position_rows import reach

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
        ValueError: for an empty text, a run without an adapter, or tokens that differ.
    """
    for text in texts or [""]:
        refuse_empty(text)
    read = [[_tokens(run, text) for text in texts] for run in runs]
    if any(other != read[0] for other in read[1:]):
        raise ValueError(
            f"{runs[0].folder} and {runs[1].folder} read other tokens: explore each alone"
        )
    names = adapter_names([run.folder for run in runs])
    return {
        "title": ", ".join(names),
        "sentences": [{"tokens": tokens} for tokens in read[0]],
        "runs": [
            _explored_run(run, name, texts, steps=steps)
            for run, name in zip(runs, names, strict=True)
        ],
    }


def explain_text(run: Run, text: str) -> Explanation:
    """What the active adapter of a run's model does to a text.

    Raises:
        ValueError: as ``explain`` does.
    """
    most = {"truncation": True, "max_length": run.recipe.max_length}
    batch = run.tokenizer(text, return_tensors="pt", **most).to(run.device)
    batch.pop("token_type_ids", None)
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
        "reach": " ".join(filter(None, map(reach, map_configs(model, "default")))),
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


def _tokens(run: Run, text: str) -> list[str]:
    ids = run.tokenizer(text, truncation=True, max_length=run.recipe.max_length)["input_ids"]
    return [run.tokenizer.decode([token]) for token in ids]


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
