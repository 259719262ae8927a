"""The fourth step: by which metrics an answer is scored, and what it scores."""
