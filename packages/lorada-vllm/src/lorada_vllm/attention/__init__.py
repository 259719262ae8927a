"""vLLM's attention backends with the map: one mechanism (``mixins``), one file per backend."""
