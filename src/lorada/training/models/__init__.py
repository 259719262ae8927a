"""Base models: loaded, adapted, counted, and the losses of their outputs."""
