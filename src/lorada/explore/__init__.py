"""One page on what an adapter does."""
