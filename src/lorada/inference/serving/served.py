"""The names that the server answers to: each run, and the base alone."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel

from lorada.inference.can_refill import end_tokens, is_plain_greedy, needs_peft_generate
from lorada.inference.generate import generation_settings, room_for_prompts
from lorada.inference.load import Run
from lorada.inference.serving.engines import MEMORY, Batched, OneByOne
from lorada.inference.serving.shared_model import AdapterView, SharedModel
from lorada.inference.side_by_side import load_side_by_side
from lorada.runs.data.dataset import context_of

CACHE_TOKENS = 8192  # of each batch's cache on a processor, unless the user says otherwise


@dataclass(frozen=True)
class Served:
    """What answers to one name.

    Attributes:
        name: the name, which requests give as ``model``.
        run: the run; for the base alone, one with the base as its model.
        engine: writes the answers.
        room: most tokens of a prompt and its answer together, of an encoder–decoder of each of the
            two; None for any number.
        most: tokens of an answer, unless a request says otherwise: those of ``lorada generate``.
        ends: the tokens that end an answer.
        stops: the texts that end an answer and stay in it, from the run's protocol.
        described: what the list of models says of it.
    """

    name: str
    run: Run
    engine: Batched | OneByOne
    room: int | None
    most: int
    ends: frozenset[int]
    stops: tuple[str, ...]
    described: dict[str, str]


def open_served(
    folders: Sequence[Path], *, cache_tokens: int | None = None, trust_remote_code: bool = False
) -> dict[str, Served]:
    """Load finished runs on one base, and give each and the base a name.

    Args:
        folders: of the runs.
        cache_tokens: keys and values that the cache of a batch holds; None for a number of our own
            on a processor, and for what memory allows on an accelerator.
        trust_remote_code: whether code of a model's repository may run.

    Raises:
        ValueError: as ``load_side_by_side``, or for a run that writes no text.
    """
    adapters = load_side_by_side(folders, trust_remote_code=trust_remote_code)
    first = next(iter(adapters.values())).run
    if cache_tokens is None and first.device.type == "cpu":
        cache_tokens = CACHE_TOKENS
    base, shared = base_name(first.recipe.model, adapters), SharedModel(first.model)
    names: dict[str, tuple[Run, str | None]] = {n: (a.run, a.key) for n, a in adapters.items()}
    if isinstance(first.model, PeftModel):
        names[base] = replace(first, model=shared.base), None
    found = {}
    for name, (run, key) in names.items():
        settings = generation_settings(run)
        room_for_prompts(run, settings["max_new_tokens"])  # refuses what no prompt could go with
        rooms = [context_of(run.model.config)]
        engine: Batched | OneByOne = OneByOne(run, shared, key, settings)
        if can_batch(run, key, settings):
            share = MEMORY / len(names)
            engine = Batched(AdapterView(shared, key), settings, cache_tokens, share)
            rooms.append(cache_tokens)
        found[name] = Served(
            name, run, engine, room=min((room for room in rooms if room is not None), default=None),
            most=settings["max_new_tokens"], ends=frozenset(end_tokens(run)),
            stops=tuple(settings.get("stop_strings") or ()),
            described={"base": base} | ({"method": run.recipe.method} if name in adapters else {}),
        )  # fmt: skip
    return found


def base_name(model: str, taken: Container[str]) -> str:
    """The name of a base: its hub id or its folder's name, with ``base:`` before if it is taken."""
    name = Path(model).resolve().name if Path(model).is_dir() else model
    return name if name not in taken else f"base:{name}"


def can_batch(run: Run, key: str | None, settings: dict[str, Any]) -> bool:
    """Whether transformers' continuous batching gives the tokens of ``generate``.

    It is for decoders whose attention goes through transformers' interface; ``key`` is the
    adapter's, if there is one.
    """
    base = run.model
    if isinstance(base, PeftModel):
        if needs_peft_generate(base.peft_config[key]):
            return False
        base = base.get_base_model()
    interface = run.kind == "decoder" and base._supports_attention_backend
    return bool(interface and is_plain_greedy(run, settings))
