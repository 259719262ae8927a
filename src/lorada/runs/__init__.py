"""One training: its recipe, model, rows, trainer, folder, and what its result is used for."""
