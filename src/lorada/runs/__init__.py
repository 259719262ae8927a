"""A run: its recipe, model, rows, training and folder, and the uses of the trained model."""
