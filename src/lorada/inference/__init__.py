"""Uses of a finished run: evaluation, generation, statistics of maps, export."""
