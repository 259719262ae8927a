"""Scores candidate answers by their likelihood, to choose the likeliest.

    s_c = 1/d · Σ over the tokens of candidate c of log p(token | prompt, the tokens before it)

d is the number of the candidate's tokens, or what ``length_norm`` says.

Source: the classification objective of QuanTA (Chen et al., 2024) for commonsense questions.

Shapes: B rows, C candidates of all rows in order, T tokens of a prompt with a candidate.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorada.data.batches import IGNORED
from lorada.tuners.lmam import map_configs


def log_likelihoods(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-probability (C,) of each candidate, in fp32: s_c times d.

    ``logits`` (C, T, vocabulary) are of the last T tokens; ``labels`` (C, T) are ids of the
    candidates' tokens, and ``IGNORED`` for all other tokens.
    """
    targets = labels[:, 1:]  # what the logits of the token before predict
    counted = targets != IGNORED
    token_log_p = _token_log_likelihoods(logits[:, :-1], targets.clamp(min=0))
    return (token_log_p * counted).sum(-1)


def _token_log_likelihoods(logits: Tensor, ids: Tensor) -> Tensor:
    """The log-probability of each id (*B,) by logits (*B, vocabulary), in fp32."""
    return logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def sequence_scores(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """s_c of each candidate (C,), in fp32, from sequences of a prompt with a candidate.

    ``batch`` has ``input_ids``, ``attention_mask`` and ``labels``, (C, T), padded on the left, and
    the ``divisors`` (C,).
    """
    labels, mask = batch["labels"], batch["attention_mask"]
    # Logits take the most memory, and only those at the ends of sequences are needed: of the
    # longest candidate, and of the token before it.
    count = int((labels != IGNORED).sum(-1).max()) + 1
    keywords = accepted(model, position_ids=positions_of(mask))
    keywords |= only_last(model, count, mask.device)
    output = model(input_ids=batch["input_ids"], attention_mask=mask, **keywords)
    scores = log_likelihoods(output.logits[:, -count:], labels[:, -count:])
    return scores / batch["divisors"].to(scores.device)


def cached_scores(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """s_c of each candidate (C,), as ``sequence_scores``, where each prompt is read only once.

    ``batch`` also has ``groups`` (B,), how many candidates each row has. Wrong for a model in which
    a later token changes an earlier token's output: see ``needs_whole``.
    """
    ids, scored = batch["input_ids"], batch["labels"] != IGNORED
    groups = batch["groups"].to(ids.device)
    row_of = torch.arange(len(groups), device=ids.device).repeat_interleave(groups)  # (C,)
    first = groups.cumsum(0) - groups  # (B,): the first candidate of each row
    lengths = scored.sum(-1)
    begins = ids.shape[1] - lengths  # (C,): where each candidate begins
    prompt_lengths = (batch["attention_mask"].bool() & ~scored)[first].sum(-1)
    prompt_begins = begins[first] - prompt_lengths
    # Prompts end in the last column, where their candidates follow; those begin in the first.
    prompts, prompt_mask = _cut_out(ids[first], prompt_begins, prompt_lengths, pad_side="left")
    candidates, mask = _cut_out(ids, begins, lengths, pad_side="right")

    positions = positions_of(prompt_mask)
    keywords = accepted(model, position_ids=positions) | only_last(model, 1, ids.device)
    has_longer = mask.shape[1] > 1  # candidates of more than one token
    # First pass: the prompts, one row each.
    output = model(input_ids=prompts, attention_mask=prompt_mask, use_cache=has_longer, **keywords)
    # The last token of a prompt predicts the first of each of its candidates.
    first_log_p = output.logits[:, -1].float().log_softmax(-1)  # (B, vocabulary)
    total: Tensor = first_log_p[row_of, candidates[:, 0]]
    if has_longer:
        # ``cache`` is the new name in transformers.
        name = "cache" if "cache" in accepted(model, cache=None) else "past_key_values"
        cache = output[name]
        cache.batch_select_indices(row_of)  # each candidate gets a copy of its prompt's
        # Nothing is predicted from the last token, so it is not read.
        offsets = torch.arange(1, mask.shape[1], device=ids.device)
        # Second pass: the candidates without their last tokens, each after its prompt's cache.
        further = model(
            input_ids=candidates[:, :-1],
            attention_mask=torch.cat([prompt_mask[row_of], mask[:, :-1]], -1),
            use_cache=True,
            **{name: cache},
            **accepted(model, position_ids=positions[row_of, -1:] + offsets),
        )
        further_log_p = _token_log_likelihoods(further.logits, candidates[:, 1:])
        total = total + (further_log_p * mask[:, 1:]).sum(-1)
    return total / batch["divisors"].to(total.device)


def _cut_out(
    ids: Tensor, begins: Tensor, lengths: Tensor, *, pad_side: str
) -> tuple[Tensor, Tensor]:
    """The tokens of a part of each sequence, as a padded batch with its mask.

    Args:
        ids: of whole sequences (B, T).
        begins: where the part of each begins (B,).
        lengths: how many tokens it has (B,); the longest of M.
        pad_side: ``left`` or ``right``.

    Returns:
        Ids and mask, (B, M).
    """
    longest = int(lengths.max())
    # The place of each column in its part; below 0, or past the length, it is a pad.
    offsets = torch.arange(longest, device=ids.device).expand(len(ids), -1)
    if pad_side == "left":
        offsets = offsets - (longest - lengths)[:, None]
    is_token = (offsets >= 0) & (offsets < lengths[:, None])
    indices = (begins[:, None] + offsets).clamp(0, ids.shape[1] - 1)
    return ids.gather(1, indices).masked_fill(~is_token, 0), is_token.long()


def positions_of(mask: Tensor) -> Tensor:
    """The position of each token (*B, T), counted without pads, where ``mask`` is 0."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def accepted(model: Any, **extra: Any) -> dict[str, Any]:
    """The keywords that the transformers model's ``forward`` names among its parameters."""
    parameters = _forward_parameters(model)
    return {name: value for name, value in extra.items() if name in parameters}


def only_last(model: Any, count: int, device: torch.device) -> dict[str, Any]:
    """The keyword that makes a model compute the logits of the last ``count`` tokens only, if any.

    Given as a number, transformers cuts a view, of which torch on a CPU multiplies each sequence
    with the head by itself (seven times as long); given as places, it gathers.
    """
    parameter = _forward_parameters(model).get("logits_to_keep")
    if parameter is None:
        return {}
    if "Tensor" in str(parameter.annotation):
        return {"logits_to_keep": torch.arange(-count, 0, device=device)}
    return {"logits_to_keep": count}


def _forward_parameters(model: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of ``forward`` of the transformers model inside of wrapper and adapter."""
    while hasattr(model, "module"):  # a wrapper for several processes
        model = model.module
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inspect.signature(inner.forward).parameters


def likeliest(scores: Tensor, groups: Tensor) -> list[int]:
    """The index of each row's best candidate, from ``scores`` (C,) and ``groups`` (B,)."""
    return [int(row.argmax()) for row in scores.split(groups.tolist())]


def needs_whole(model: nn.Module) -> bool:
    """Whether a model must read whole sequences, because its maps count later tokens."""
    return any(part.align == "end" for part in map_configs(model))
