"""AutoPEFT: a search chooses the sizes and layers of two adapters and a prefix."""
