"""The rows of a run: reading, tokenising, caching and packing them, and making batches."""
