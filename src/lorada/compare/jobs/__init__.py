"""Trainings and scorings as processes: here, or on a Ray cluster."""
