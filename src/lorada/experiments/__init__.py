"""Many runs together: the paper's tables, the search, the quickstart."""
