"""OMoE: orthogonal LoRA or DoRA experts on each linear layer, mixed by a router."""
