"""The effect size of a run's maps on one answer, layer by layer.

    effect size = ‖tile(Attn_s) V‖ / ‖Attn V‖ over the tokens (Frobenius)

It is that of ``lorada.explain``, without the maps themselves, which long texts would make
large, and also for models whose softmax cannot be shown.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorada.attention.observation import Observation, observe, ratio_of, squared_norms
from lorada.inference.load import Run
from lorada.inference.stream import Written
from lorada.methods.task_head import PEFT_NAMES


@dataclass(frozen=True)
class LayerEffect:
    """What the map of one layer did.

    Attributes:
        layer: name of the attention module.
        text: effect size over all tokens that the layer read, of the question and of the answer.
        answer: over the tokens alone that the answer's tokens were predicted from. An encoder reads
            no answer, and an encoder–decoder's decoder nothing else, so there both are the same.
    """

    layer: str
    text: float
    answer: float


def answer_effect(run: Run, written: Written) -> list[LayerEffect]:
    """Let a run read an answer with its question once more, and measure its maps.

    A map with ``align="end"`` moves while the model writes; here it stands at the end of the text.

    Returns:
        The layers with an active map, in order; none if the run has no map.
    """
    batch, answer = _as_read(run, written)
    names = {module: name for name, module in run.model.named_modules()}
    found: dict[nn.Module, list[tuple[Any, Any]]] = {}

    def keep(seen: Observation) -> None:
        if seen.call.module in names:
            # The batch is one text, so every token is real.
            own = (seen.term[:, answer], seen.output[:, answer].float())
            norms = (own[0].square().sum(), own[1].square().sum())
            found.setdefault(seen.call.module, []).append((squared_norms(seen), norms))

    with torch.no_grad(), observe(keep):
        run.model(**batch)
    effects = []
    for module, calls in found.items():
        text, own = (ratio_of(list(norms)) for norms in zip(*calls, strict=True))
        effects.append(LayerEffect(names[module].removeprefix(PEFT_NAMES), text, own))
    return effects


def _as_read(run: Run, written: Written) -> tuple[dict[str, Tensor], slice]:
    """The batch of question and answer, and which queries of a layer belong to the answer."""
    ids = written.ids[None]
    if run.kind == "encoder_decoder":  # the last token was written, but never read
        return {**written.read, "decoder_input_ids": ids[:, :-1]}, slice(None)
    question = written.read["input_ids"]
    whole = torch.cat([question, ids], dim=1)
    batch = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
    return batch, slice(question.shape[1] - 1, whole.shape[1] - 1)
