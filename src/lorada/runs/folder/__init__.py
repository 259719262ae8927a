"""The folder of a run: what it holds, its lock, its result and its model card."""
