"""The first step, from bytes to dicts: rows as files, the hub and benchmarks have them."""
