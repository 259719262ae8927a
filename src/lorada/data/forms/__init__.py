"""The second step, from dicts to a form: which fields a row has, and what its values may be."""
