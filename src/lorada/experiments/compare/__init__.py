"""``lorada compare``: trains several methods at the same budgets and tells which are better."""
