"""AutoPEFT: the search for where adapters go and how large they are."""
