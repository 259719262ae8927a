"""The effect size of a run's maps on one answer, layer by layer.

    effect size = ‖tile(Attn_s) V‖ / ‖Attn V‖ over the tokens (Frobenius)

It is measured without the maps themselves, which long texts would make large, and also for models
whose softmax cannot be shown.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lorada.attention.observation import Observation, observe, ratio_of
from lorada.inference.load import Run
from lorada.inference.stream import Written
from lorada.methods.task_head import PEFT_NAMES

Norms = tuple[Tensor, Tensor]  # squared, of a map's term and of the output without it


class LayerEffect(NamedTuple):
    """What the map of the attention module ``layer`` did.

    ``text`` is its effect size over all tokens that the layer read, of question and answer;
    ``answer`` over the tokens alone that the answer's tokens were predicted from. An encoder reads
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
    ids, answer = written.ids[None], slice(None)
    if run.kind == "encoder_decoder":  # the last token was written, but never read
        batch = {**written.read, "decoder_input_ids": ids[:, :-1]}
    else:
        question = written.read["input_ids"]
        whole = torch.cat([question, ids], dim=1)
        batch = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        answer = slice(question.shape[1] - 1, whole.shape[1] - 1)
    found: dict[nn.Module, list[list[Norms]]] = {}

    def keep(seen: Observation) -> None:
        both = seen.term, seen.output.to(seen.term.dtype)  # of one text, so every token is real
        term, output = ([x[:, part].square().sum() for part in (slice(None), answer)] for x in both)
        found.setdefault(seen.call.module, []).append(list(zip(term, output, strict=True)))

    with torch.no_grad(), observe(keep):
        run.model(**batch)
    effects = []
    for name, module in run.model.named_modules():
        if module in found:
            text, own = (ratio_of(list(calls)) for calls in zip(*found[module], strict=True))
            effects.append(LayerEffect(name.removeprefix(PEFT_NAMES), text, own))
    return effects
