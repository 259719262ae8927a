"""Base models: finding and loading them, placing methods on them, counting parameters."""
