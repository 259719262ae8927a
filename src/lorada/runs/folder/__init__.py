"""The folder of a run: who may write there, its lock, checkpoints, result and model card."""
