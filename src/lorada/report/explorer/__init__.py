"""A page that shows what a run's adapter does to a few sentences, by layer and head."""
