"""Refuses tokens of a tokenizer that the model has no embedding for."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def refuse_unknown_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a model raise an error when it meets a token that it has no embedding for.

    A tokenizer with more tokens is no error by itself: many have one that is never used, such as
    Gemma 3's token for images.

    Raises:
        ValueError: in the model's forward, naming the token.
    """
    embeddings = model.get_input_embeddings()
    known = embeddings.weight.shape[0]
    if len(tokenizer) <= known:
        return

    def check(module: nn.Module, args: tuple[Any, ...]) -> None:
        ids = args[0]
        largest = int(ids.max()) if isinstance(ids, torch.Tensor) and ids.numel() else 0
        if largest >= known:
            raise ValueError(
                f"the tokenizer has {tokenizer.convert_ids_to_tokens(largest)!r} as token "
                f"{largest}, but the model has embeddings for {known} tokens only: take the "
                "tokenizer that belongs to the model, or resize the model's embeddings"
            )

    embeddings.register_forward_pre_hook(check)
