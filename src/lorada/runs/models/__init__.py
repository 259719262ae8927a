"""Base models: found, loaded, given an adapter, counted."""
