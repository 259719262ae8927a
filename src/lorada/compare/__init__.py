"""Which method to take: tests of scores, the decision, and how it is said; without torch."""
