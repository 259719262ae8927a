"""Trainer callbacks of the methods that change how a model is trained."""
