"""The rows of a run: read, tokenised, cached, packed and put into batches."""
