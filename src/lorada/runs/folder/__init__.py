"""The folder of a run: what may be written there, its lock, checkpoints, result, model card."""
