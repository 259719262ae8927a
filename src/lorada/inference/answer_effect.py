"""The effect size of a run's maps on one answer, layer by layer.

    effect size = ‖tile(Attn_s) V‖ / ‖Attn V‖ over the tokens (Frobenius)

It is measured without the maps themselves, which long texts would make large, and also for models
whose softmax cannot be shown.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorada.attention.observation import Observation, observe
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
    ids, answer = written.ids[None], slice(None)
    if run.kind == "encoder_decoder":  # the last token was written, but never read
        batch = {**written.read, "decoder_input_ids": ids[:, :-1]}
    else:
        question = written.read["input_ids"]
        whole = torch.cat([question, ids], dim=1)
        batch = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        answer = slice(question.shape[1] - 1, whole.shape[1] - 1)
    names = {module: name for name, module in run.model.named_modules()}
    found: dict[nn.Module, list[Tensor]] = {}  # squared norms (text or answer, term or output)

    def keep(seen: Observation) -> None:
        if seen.call.module in names:  # the batch is one text, so every token is real
            wide = seen.term, seen.output.to(seen.term.dtype)
            both = torch.stack(wide).square().sum((1, 3, 4))
            norms = torch.stack([both.sum(-1), both[:, answer].sum(-1)])
            found.setdefault(seen.call.module, []).append(norms)

    with torch.no_grad(), observe(keep):
        run.model(**batch)
    effects = []
    for module, calls in found.items():
        term, output = torch.stack(calls).sum(0).sqrt().unbind(-1)
        text, own = (term / output.clamp(min=1e-12)).tolist()
        effects.append(LayerEffect(names[module].removeprefix(PEFT_NAMES), text, own))
    return effects
