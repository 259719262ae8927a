"""The training itself: trainers, losses and callbacks."""
