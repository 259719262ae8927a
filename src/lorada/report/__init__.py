"""Makes pictures and tables from saved results; imports neither torch nor the training code."""
