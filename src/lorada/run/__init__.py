"""From a recipe to a trained adapter, its scores and its ``result.json``."""
