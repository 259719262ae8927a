"""Which method to take, from scores of any trainer: tests, expected losses, the sentence."""
