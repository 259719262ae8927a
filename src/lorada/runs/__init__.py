"""A run's files: its recipe, its folder with checkpoints, its result and its predictions."""
