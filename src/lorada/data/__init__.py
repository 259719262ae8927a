"""Rows from a file or a benchmark: read, checked, turned into token ids, and scored."""
