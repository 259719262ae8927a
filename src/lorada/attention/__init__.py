"""How a map or a prefix takes part in attention: what a transformers model calls, and what is computed there."""
