"""Rows of a run: read, tokenised, cached, packed, put in batches."""
