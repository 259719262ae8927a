"""What a method has to beat: scores of what needs no training, on the same held-out rows."""
