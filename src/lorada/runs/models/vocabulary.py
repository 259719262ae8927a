"""A tokenizer that knows more tokens than its model has embeddings for."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def refuse_unknown_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a model refuse tokens that it has no embedding for, by name, as soon as it meets one.

    Tokenizers with a token too many are common, and most never use it (Gemma 3's has one for
    images), so it is not refused before.

    Raises:
        ValueError: by the model, naming the token.
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
