"""What all tuners share: their config, how they are placed in a model, and their layers."""
