"""AutoPEFT: adapters and a prefix whose sizes and layers a search chooses."""
