"""Pictures and tables from saved results; imports neither torch nor the code that trains."""
