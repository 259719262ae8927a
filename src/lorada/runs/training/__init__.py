"""Training: the set-up, trainers, losses and callbacks."""
