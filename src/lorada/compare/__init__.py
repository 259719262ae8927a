"""Which method for these rows: the plan, the search for a rate, the runs, the report."""
