"""OMoE: orthogonal LoRA or DoRA experts, mixed by a router."""
