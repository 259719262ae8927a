"""What a trained run is used for: evaluated, generated with, exported."""
