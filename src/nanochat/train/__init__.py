"""Schedules, scaling rules, the training loop and its resume state."""
