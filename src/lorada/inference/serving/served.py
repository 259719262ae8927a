"""The names that the server answers to: each run, and the base alone."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import GenerationConfig

from lorada.inference.can_refill import end_tokens, is_plain_greedy, needs_peft_generate
from lorada.inference.generate import generation_settings, room_for_prompts
from lorada.inference.load import Run
from lorada.inference.serving.batched import MEMORY, Batched
from lorada.inference.serving.one_by_one import OneByOne
from lorada.inference.serving.shared_model import AdapterView, SharedModel
from lorada.inference.side_by_side import load_side_by_side
from lorada.runs.data.dataset import context_of

CACHE_TOKENS = 8192  # of each batch's cache on a processor, unless the user says otherwise


@dataclass(frozen=True)
class Served:
    """What answers to one name.

    Attributes:
        name: the name, which requests give as ``model``.
        run: the run; for the base alone, a run that has it.
        engine: writes the answers.
        most: tokens of an answer, unless a request says otherwise: those of ``lorada generate``.
        ends: the tokens that end an answer.
        stops: the texts that end an answer and stay in it, from the run's protocol.
        described: what the list of models says of it.
    """

    name: str
    run: Run
    engine: Batched | OneByOne
    most: int
    ends: frozenset[int]
    stops: tuple[str, ...]
    described: dict[str, str]

    @property
    def room(self) -> int | None:
        """Most tokens of a prompt and its answer together; None for any number.

        Of an encoder–decoder, it is for each of the two.
        """
        limits = [self.engine.room, context_of(self.run.model.config)]
        return min((limit for limit in limits if limit is not None), default=None)


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
    base = base_name(first.recipe.model, adapters)
    names: dict[str, tuple[Run, str | None]] = {n: (a.run, a.key) for n, a in adapters.items()}
    if isinstance(first.model, PeftModel):
        names[base] = first, None
    shared, found = SharedModel(first.model), {}
    for name, (run, key) in names.items():
        settings = generation_settings(run)
        room_for_prompts(run, settings["max_new_tokens"])  # refuses what no prompt could go with
        engine: Batched | OneByOne = OneByOne(run, shared, key, settings)
        if can_batch(run, key, settings):
            config = GenerationConfig.from_dict(shared.base.generation_config.to_dict())
            config.update(**settings)
            engine = Batched(AdapterView(shared, key), config, cache_tokens, MEMORY / len(names))
        found[name] = Served(
            name, run, engine, settings["max_new_tokens"], frozenset(end_tokens(run)),
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
    adapter's, None for the base alone.
    """
    model = run.model
    if isinstance(model, PeftModel):
        if key is not None and needs_peft_generate(model.peft_config[key]):
            return False
        model = model.get_base_model()
    decoder = run.kind == "decoder" and model._supports_attention_backend
    return bool(decoder and is_plain_greedy(run, settings))
