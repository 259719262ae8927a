"""The benchmarks: where their rows come from, what is asked, and how answers are scored."""
