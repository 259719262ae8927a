"""One page that shows what a run's adapter does to a few sentences, layer by layer, head by head."""
