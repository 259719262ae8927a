"""Small helpers that every folder may use: files, errors, progress bars, processes."""
