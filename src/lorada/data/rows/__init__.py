"""The third step, rows: of a user's own and of benchmarks, their shares, groups and copies."""
