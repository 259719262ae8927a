"""What happens inside an attention call: the map or prefix that is added, and where."""
